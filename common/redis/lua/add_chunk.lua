-- Writes one payload of a job that is being submitted, and that its producer is alive. ARGV: field of INPUT, payload.
-- Returns 'written', or the status that the job has.
local word = status()
if word ~= 'submitting' then return word or 'unknown' end
redis.call('HSET', INPUT, ARGV[1], ARGV[2])
redis.call('HSET', JOB, 'producer_seen', now())
return 'written'
