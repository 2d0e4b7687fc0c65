-- Gives a job up whose producer fell silent before all of it was there. ARGV: when the producer was last seen, as the job
-- tells it; if it was seen since, nothing happens. Gives 1 if it was this call that ended the job.
if status() ~= 'submitting' or redis.call('HGET', JOB, 'producer_seen') ~= ARGV[1] then return 0 end
redis.call('HSET', JOB, 'failure_code', 'producer_died',
  'failure_message', 'The command that submitted this job ended before all of it was there; nothing was run.')
-- Whoever comes with its idempotency key goes on with what is there.
if not redis.call('HGET', JOB, 'mapping') then redis.call('UNLINK', INPUT) end
finish('failed')
return 1
