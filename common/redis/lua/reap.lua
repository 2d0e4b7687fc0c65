-- Looks after a job. ARGV: lease in ms; '1' if leases may be judged.
-- Returns {status or 'unknown', chunks opened because their lease ran out, chunks that had got lost and are on their list
-- again, how many are open, 1 if all is done but that its output is whole, when its producer was last seen, tickets}.
local MOST_CHUNKS = 10000000  -- to look for lost ones: more is not a number that we have written
local LEASE, JUDGING = tonumber(ARGV[1]), ARGV[2] == '1'
local word = status()
local opened, recovered = {}, {}

local function answer(output_uncommitted)
  local seen = redis.call('HGET', JOB, 'producer_seen') or ''
  local tickets = redis.call('SMEMBERS', TICKETS)
  return { status() or 'unknown', opened, recovered, redis.call('LLEN', OPEN), output_uncommitted, seen, tickets }
end

-- Opens chunks whose lease ran out. No lease is longer than LEASE: where one seems to be, the clock was set back, and
-- its holder, if it lives, will renew it long before it ends.
local function open_expired()
  for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
    local left = redis.call('PTTL', lease_key(chunk))
    if left == -2 then
      redis.call('SREM', LEASED, chunk)
      redis.call('LPUSH', OPEN, chunk)
      opened[#opened + 1] = tonumber(chunk)
    elseif left == -1 or left > LEASE then
      redis.call('PEXPIRE', lease_key(chunk), LEASE)
    end
  end
end

local function on_a_list()
  return redis.call('LLEN', OPEN) + redis.call('SCARD', LEASED) + redis.call('ZCARD', DELAYED)
    + redis.call('HLEN', COMMITS)
end

-- Puts a chunk that is on no list where it belongs. Whether it is done, COMMIT_HISTORY says: a chunk that was committed in this
-- round is, and one of an earlier round if nothing of it failed, for all others were opened when this round began.
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

-- Every chunk is open, in hand, delayed or done. One that is none of these would be waited for for ever.
local function recover_lost()
  local chunks = tonumber(redis.call('HGET', JOB, 'chunks'))
  if on_a_list() >= chunks or chunks > MOST_CHUNKS then return end
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

-- Seconds until something may have to be done; nil if nothing will be before somebody calls.
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
redis.call('SADD', ACTIVE, job_id())
if word ~= 'submitting' then
  open_delayed()
  if JUDGING then
    open_expired()
    if word ~= 'cancelling' then recover_lost() end
  end
  finish_if_done()
end
local output_uncommitted = status() == 'running' and all_committed()  -- or it were completed now
local seconds = unfinished(status()) and until_next(output_uncommitted)
if seconds then redis.call('ZADD', DUE, now() + seconds, job_id()) end
return answer(output_uncommitted and 1 or 0)
