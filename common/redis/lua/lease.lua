-- Takes a job's next open chunk. ARGV: ticket, holder, lease in ms, id for the next ticket, tickets to keep.
-- Returns {chunk, attempt, round, whether the next ticket counts, serial, tries}, or {} where there is nothing to do.
local word = status()
if word ~= 'queued' and word ~= 'running' then return {} end

local function granted(chunk, more)
  local attempt = (tonumber(redis.call('HGET', ATTEMPTS, chunk)) or 0) + 1
  local serial = tonumber(redis.call('HGET', ATTEMPTS, chunk .. ':serial'))
  local tries = tonumber(redis.call('HGET', ATTEMPTS, chunk .. ':retries')) or 0
  return { tonumber(chunk), attempt, tonumber(redis.call('HGET', JOB, 'round')), more, serial, tries }
end

-- What a lease that was not given back has left: its worker died. Unless it had brought the chunk forward, that is held
-- against the chunk; against the record that ran alone it is in any case.
local function note_death(chunk)
  if redis.call('HSETNX', ATTEMPTS, chunk .. ':counted', 1) == 0 then redis.call('HINCRBY', ATTEMPTS, chunk, 1) end
  local alone = redis.call('HGET', ATTEMPTS, chunk .. ':isolated')
  if not alone then return end
  local earlier = redis.call('HGET', ATTEMPTS, chunk .. ':isolated_deaths')
  redis.call('HSET', ATTEMPTS, chunk .. ':isolated_deaths', (earlier and earlier .. ' ' or '') .. alone)
  redis.call('HDEL', ATTEMPTS, chunk .. ':isolated')
end

if redis.call('SREM', TICKETS, ARGV[1]) == 0 then
  -- The answer may have been lost on its way: this very call has a chunk then.
  for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
    if redis.call('GET', lease_key(chunk)) == ARGV[2] then
      return granted(chunk, redis.call('SISMEMBER', TICKETS, ARGV[4]))
    end
  end
  return {}
end
open_delayed()
while true do
  local chunk = redis.call('LPOP', OPEN)
  if not chunk then return {} end
  if redis.call('HEXISTS', COMMITS, chunk) == 0
    and redis.call('SET', lease_key(chunk), ARGV[2], 'NX', 'PX', ARGV[3]) then
    redis.call('SADD', LEASED, chunk)
    schedule_check(ARGV[3] / 1000)
    note_death(chunk)
    redis.call('HSET', ATTEMPTS, chunk .. ':holder', ARGV[2])
    redis.call('HINCRBY', ATTEMPTS, chunk .. ':serial', 1)
    if word == 'queued' then
      redis.call('HSET', JOB, 'status', 'running')
      redis.call('HSETNX', JOB, 'started_at', now())
    end
    local more = 0
    if redis.call('SCARD', TICKETS) < math.min(tonumber(ARGV[5]), redis.call('LLEN', OPEN)) then
      more = redis.call('SADD', TICKETS, ARGV[4])
    end
    return granted(chunk, more)
  end
end
