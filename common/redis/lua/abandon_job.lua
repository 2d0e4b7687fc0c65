-- Fails a job whose producer fell silent before all of it was there. ARGV: when the producer was last seen, as noted in
-- the job; if it was seen since, nothing happens. Returns 1 if this call ended the job.
if status() ~= 'submitting' or tonumber(redis.call('HGET', JOB, 'producer_seen')) ~= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', JOB, 'failure_code', 'producer_died',
  'failure_message', 'The command that submitted this job ended before all of it was there; nothing was run.')
redis.call('UNLINK', INPUT)
finish('failed')
return 1
