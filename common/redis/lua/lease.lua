-- Leases a job's next open chunk. ARGV: ticket, holder, lease in ms, id for the next ticket, maximum of tickets.
-- Returns {chunk, attempt, round, whether the next ticket is valid, lease number, retries}, or {} if there is nothing to do.
local word, round = unpack(redis.call('HMGET', JOB, 'status', 'round'))
if word ~= 'queued' and word ~= 'running' then return {} end

local function granted(chunk, more)
  local deaths, number, tries = unpack(redis.call('HMGET', ATTEMPTS, chunk, chunk .. ':serial', chunk .. ':retries'))
  return { tonumber(chunk), (tonumber(deaths) or 0) + 1, tonumber(round), more, tonumber(number), tonumber(tries) or 0 }
end

-- Notes the lease; and the death of a worker, if the lease before was not released. That counts as a failed attempt of
-- the chunk unless there was progress, and in any case of the isolated record.
local function note_lease(chunk)
  local died, number, isolated =
    unpack(redis.call('HMGET', ATTEMPTS, chunk .. ':counted', chunk .. ':serial', chunk .. ':isolated'))
  if died then redis.call('HINCRBY', ATTEMPTS, chunk, 1) end
  if isolated then
    local earlier = redis.call('HGET', ATTEMPTS, chunk .. ':isolated_deaths')
    redis.call('HSET', ATTEMPTS, chunk .. ':isolated_deaths', (earlier and earlier .. ' ' or '') .. isolated)
    redis.call('HDEL', ATTEMPTS, chunk .. ':isolated')
  end
  redis.call('HSET', ATTEMPTS, chunk .. ':counted', 1, chunk .. ':holder', ARGV[2],
    chunk .. ':serial', (tonumber(number) or 0) + 1)
end

if redis.call('SREM', TICKETS, ARGV[1]) == 0 then
  -- The answer may have been lost: this call has a chunk then.
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
    note_lease(chunk)
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
