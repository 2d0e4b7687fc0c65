-- Deletes a job and all its keys. ARGV: 1 if it may be unfinished. Returns 'deleted', 'unknown', or the status that
-- prevents it.
local word = status()
if ARGV[1] ~= '1' and unfinished(word) then return word end
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
redis.call('ZREM', JOBS, job_id())
if redis.call('EXISTS', JOBS) == 0 then redis.call('DEL', SCHEMA) end
return word and 'deleted' or 'unknown'
