-- Lets go of a job that is being submitted, so that whoever comes with its idempotency key goes on at once. ARGV: token.
if status() == 'submitting' and redis.call('HGET', JOB, 'producer') == ARGV[1] then
  redis.call('HSET', JOB, 'producer', '', 'producer_seen', 0)
end
return 1
