-- Forgets a job and all that belongs to it. ARGV: 1 if it may be unfinished, and the token of the producer that may
-- ask for it ('' for whoever). Gives 'deleted', 'unknown', or why not: the status it has, or 'taken'.
local word = status()
if ARGV[1] ~= '1' and unfinished(word) then return word end
if ARGV[2] ~= '' and redis.call('HGET', JOB, 'producer') ~= ARGV[2] then return 'taken' end
for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
  redis.call('DEL', lease_key(chunk))
end
local mapping = own_mapping()
if mapping then redis.call('DEL', mapping) end
for i = 1, OWN do
  redis.call('UNLINK', KEYS[i])
end
redis.call('SREM', ACTIVE, job_id())
redis.call('ZREM', DUE, job_id())
redis.call('ZREM', JOBS, job_id())
if redis.call('EXISTS', JOBS) == 0 then redis.call('DEL', SCHEMA) end
return word and 'deleted' or 'unknown'
