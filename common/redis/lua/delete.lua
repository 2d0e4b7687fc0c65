-- Deletes a job and all its keys. ARGV: which jobs, 'any', 'finished' or 'unaccepted'; one that others wait for, or
-- whose results they read, is only deleted by 'any'. Returns 'deleted', 'unknown', 'awaited', or the status that prevents
-- it.
local word = status()
if ARGV[1] == 'finished' and unfinished(word) then return word end
if ARGV[1] == 'finished' and redis.call('ZCOUNT', WAITERS, 0, 0) > 0 then return 'awaited' end
if ARGV[1] == 'unaccepted' and redis.call('HGET', JOB, 'accepted_at') then return word or 'unknown' end
for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
  redis.call('DEL', lease_key(chunk))
end
local key = idempotency_key(job_id())
if key then redis.call('DEL', key) end
for _, other in ipairs(needed_by(job_id())) do
  redis.call('ZREM', key_of(other, WAITERS), job_id())
  let_expire(other)
end
redis.call('DEL', JOB)
decide_waiters(job_id())
for i = 1, OWN do
  redis.call('UNLINK', KEYS[i])
end
redis.call('SREM', ACTIVE, job_id())
redis.call('SREM', UNBLOCKED, job_id())
redis.call('ZREM', DUE, job_id())
redis.call('ZREM', NOTIFICATIONS, job_id())
redis.call('ZREM', JOBS, job_id())
if redis.call('EXISTS', JOBS) == 0 then redis.call('DEL', SCHEMA, TOTALS, SHOWN) end
return word and 'deleted' or 'unknown'
