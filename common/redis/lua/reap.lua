-- Checks a job. ARGV: lease in ms; '1' if a missing lease has expired. Returns {status or 'unknown', chunks opened
-- because their lease expired, chunks that were on no list and were recovered, number of open chunks, 1 if only its
-- output is uncommitted, when its producer was last seen, tickets}.
local MAX_CHUNKS = 10000000  -- to look for lost ones; a larger number is forged
local LEASE, JUDGING = tonumber(ARGV[1]), ARGV[2] == '1'
local word = status()
local opened, recovered = {}, {}

local function answer(output_uncommitted)
  local seen = redis.call('HGET', JOB, 'producer_seen') or ''
  local tickets = redis.call('SMEMBERS', TICKETS)
  return { status() or 'unknown', opened, recovered, redis.call('LLEN', OPEN), output_uncommitted, seen, tickets }
end

-- Opens chunks whose lease expired. No lease is longer than LEASE: if one seems to be, the clock was set back, and its
-- holder, if alive, will renew it long before it ends.
local function open_expired()
  for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
    local left = redis.call('PTTL', lease_key(chunk))
    if left == -2 then
      redis.call('SREM', LEASED, chunk)
      redis.call('LPUSH', OPEN, chunk)
      opened[#opened + 1] = tonumber(chunk)
      add_total('leases_lost', 1)
    elseif left == -1 or left > LEASE then
      redis.call('PEXPIRE', lease_key(chunk), LEASE)
    end
  end
end

local function on_a_list()
  return redis.call('LLEN', OPEN) + redis.call('SCARD', LEASED) + redis.call('ZCARD', DELAYED)
    + redis.call('HLEN', COMMITS)
end

-- Puts a chunk that is on no list where it belongs. By COMMIT_HISTORY it is done if it was committed in this round, or
-- in an earlier one without failures: all others were opened when this round began.
local function recover(chunk)
  local commit = string.match(redis.call('HGET', COMMIT_HISTORY, chunk) or '', '%S+$')
  local round = string.match(commit or '', '^%d+')
  if redis.call('EXISTS', lease_key(chunk)) == 1 then
    redis.call('SADD', LEASED, chunk)
  elseif round and (round == redis.call('HGET', JOB, 'round') or redis.call('HEXISTS', FAILED_COUNTS, chunk) == 0) then
    redis.call('HSET', COMMITS, chunk, commit)
  else
    redis.call('RPUSH', OPEN, chunk)
  end
  recovered[#recovered + 1] = tonumber(chunk)
end

-- Every chunk is open, leased, delayed or done. A job would wait forever for one that is none of these.
local function recover_lost()
  local chunks = tonumber(redis.call('HGET', JOB, 'chunks'))
  if on_a_list() >= chunks or chunks > MAX_CHUNKS then return end
  local known = {}
  local lists = { redis.call('LRANGE', OPEN, 0, -1), redis.call('SMEMBERS', LEASED),
    redis.call('ZRANGE', DELAYED, 0, -1), redis.call('HKEYS', COMMITS) }
  for _, list in ipairs(lists) do
    for _, chunk in ipairs(list) do
      known[chunk] = true
    end
  end
  for number = 0, chunks - 1 do
    local chunk = string.format('%d', number)
    if not known[chunk] then recover(chunk) end
  end
end

-- Seconds until the next check; nil if only a call can change something.
local function until_next(output_uncommitted)
  local seconds = (status() == 'submitting' or output_uncommitted) and 1 or nil
  local function within(other)
    if not seconds or other < seconds then seconds = other end
  end
  for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
    within(math.max(0, redis.call('PTTL', lease_key(chunk))) / 1000)
  end
  local delayed = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
  if delayed[2] then within(delayed[2] - now()) end
  return seconds
end

redis.call('ZREM', DUE, job_id())
if not unfinished(word) then return answer(0) end
mark_active()
if word == 'blocked' then
  if decide(job_id()) == 'cancelled' then decide_waiters(job_id()) end
  word = status()
  if word ~= 'queued' then return answer(0) end
end
if word ~= 'submitting' then
  open_delayed()
  if JUDGING then
    open_expired()
    if word ~= 'cancelling' then recover_lost() end
  end
  finish_if_done()
end
local output_uncommitted = status() == 'running' and all_committed()  -- otherwise it is completed now
local seconds = unfinished(status()) and until_next(output_uncommitted)
if seconds then redis.call('ZADD', DUE, now() + seconds, job_id()) end
return answer(output_uncommitted and 1 or 0)
