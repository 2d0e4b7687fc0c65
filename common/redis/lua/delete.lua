-- Deletes a job and all its keys. ARGV: which jobs, 'any', 'finished' or 'unaccepted'. Returns 'deleted', 'unknown', or
-- the status that prevents it.
local word = status()
if ARGV[1] == 'finished' and unfinished(word) then return word end
if ARGV[1] == 'unaccepted' and redis.call('HGET', JOB, 'accepted_at') then return word or 'unknown' end
for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
  redis.call('DEL', lease_key(chunk))
end
local key = own_key()
if key then redis.call('DEL', key) end
for i = 1, OWN do
  redis.call('UNLINK', KEYS[i])
end
redis.call('SREM', ACTIVE, job_id())
redis.call('ZREM', DUE, job_id())
redis.call('ZREM', NOTIFICATIONS, job_id())
redis.call('ZREM', JOBS, job_id())
if redis.call('EXISTS', JOBS) == 0 then redis.call('DEL', SCHEMA, TOTALS, SHOWN) end
return word and 'deleted' or 'unknown'
