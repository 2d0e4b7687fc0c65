-- Takes a job's next open chunk. ARGV: ticket, holder, lease in ms, id for the next ticket, tickets to keep.
-- Gives {chunk, attempt, round, whether the next ticket counts, serial}, or {} where there is nothing to do.
local word = status()
if (word ~= 'queued' and word ~= 'running') or redis.call('SREM', TICKETS, ARGV[1]) == 0 then return {} end
while true do
  local chunk = redis.call('LPOP', OPEN)
  if not chunk then return {} end
  if redis.call('HEXISTS', COMMITS, chunk) == 0
    and redis.call('SET', lease_key(chunk), ARGV[2], 'NX', 'PX', ARGV[3]) then
    redis.call('SADD', LEASED, chunk)
    local attempt = redis.call('HINCRBY', ATTEMPTS, chunk, 1)
    local serial = redis.call('HINCRBY', ATTEMPTS, chunk .. ':serial', 1)
    if word == 'queued' then
      redis.call('HSET', JOB, 'status', 'running')
      redis.call('HSETNX', JOB, 'started_at', now())
    end
    local more = 0
    if redis.call('SCARD', TICKETS) < math.min(tonumber(ARGV[5]), redis.call('LLEN', OPEN)) then
      more = redis.call('SADD', TICKETS, ARGV[4])
    end
    return { tonumber(chunk), attempt, tonumber(redis.call('HGET', JOB, 'round')), more, serial }
  end
end
