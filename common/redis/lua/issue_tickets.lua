-- Notes tickets that are about to be sent, as many as the job may still have. ARGV: maximum, ids...
-- Returns the ids of the valid ones.
local word = status()
local issued = {}
if word ~= 'queued' and word ~= 'running' then return issued end
local max_tickets = math.min(tonumber(ARGV[1]), redis.call('LLEN', OPEN))
for i = 2, #ARGV do
  -- Noted already by this call, whose answer was lost.
  if redis.call('SISMEMBER', TICKETS, ARGV[i]) == 1 or redis.call('SCARD', TICKETS) < max_tickets then
    redis.call('SADD', TICKETS, ARGV[i])
    issued[#issued + 1] = ARGV[i]
  end
end
return issued
