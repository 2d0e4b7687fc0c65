-- Writes one payload of a job that is being submitted, and that its producer lives. ARGV: token of the producer (''
-- where no idempotency key was given), field of INPUT, payload, then fields of JOB and their values, which tell how far
-- it is. Gives 'written', or why not: the status that the job has, or 'taken' where another producer has taken over.
local word = status()
if not word then return 'unknown' end
if (redis.call('HGET', JOB, 'producer') or '') ~= ARGV[1] then return 'taken' end
if word ~= 'submitting' then return word end
redis.call('HSET', INPUT, ARGV[2], ARGV[3])
redis.call('HSET', JOB, 'producer_seen', now())
for i = 4, #ARGV, 2 do
  redis.call('HSET', JOB, ARGV[i], ARGV[i + 1])
end
return 'written'
