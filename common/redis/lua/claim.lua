-- Begins a job under an idempotency key, or finds the one that has it. ARGV: key that leads from it to a job, spec, time
-- to live in ms, time of creation, token of the producer, digest of the first records. Gives the job's id.
local known = redis.call('GET', ARGV[1])
if known and redis.call('EXISTS', string.sub(JOB, 1, -1 - #job_id()) .. known) == 1 then return known end
redis.call('HSET', JOB, 'spec', ARGV[2], 'status', 'submitting', 'ttl_ms', ARGV[3], 'round', 0,
  'producer_seen', now(), 'producer', ARGV[5], 'mapping', ARGV[1], 'head', ARGV[6])
redis.call('SADD', ACTIVE, job_id())
look_in(0)
redis.call('ZADD', JOBS, ARGV[4], job_id())
redis.call('SET', ARGV[1], job_id())
return job_id()
