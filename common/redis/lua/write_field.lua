-- Writes one field of one of the job's hashes, unless the job has ended: its keys have a time to live then, and a late
-- writer would leave one behind that has none. ARGV: which of KEYS, field, value. Returns 1 if it was written.
if not unfinished(status()) then return 0 end
redis.call('HSET', KEYS[tonumber(ARGV[1])], ARGV[2], ARGV[3])
return 1
