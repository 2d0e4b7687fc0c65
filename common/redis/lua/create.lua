-- Begins a job, status `submitting`, without chunks. ARGV: spec, time to live in ms, time of creation, and the key in
-- Redis of its idempotency key ('' for none). Returns the id of the job: with an idempotency key, that of the job which
-- has the key, unless that one was cut off before it was accepted.
local key = ARGV[4]
if key ~= '' then
  local known = redis.call('GET', key)
  if known then
    local other = string.sub(JOB, 1, -1 - #job_id()) .. known
    local state = redis.call('HMGET', other, 'status', 'failure_code')
    if state[1] and state[2] ~= 'producer_died' then return known end
  end
  redis.call('HSET', JOB, 'idempotency_key', key)
  redis.call('SET', key, job_id())
end
redis.call('HSET', JOB, 'spec', ARGV[1], 'status', 'submitting', 'ttl_ms', ARGV[2], 'round', 0, 'producer_seen', now())
mark_active()
schedule_check(0)
redis.call('ZADD', JOBS, ARGV[3], job_id())
return job_id()
