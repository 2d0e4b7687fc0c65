-- Opens a chunk again that its holder cannot finish; it comes first. ARGV: chunk, holder, and after a transient fault
-- the seconds before it is retried (none: it was released without a fault). A chunk of a job that has ended stays
-- leased: a retry opens it.
local chunk = ARGV[1]
if redis.call('GET', lease_key(chunk)) == ARGV[2] then redis.call('DEL', lease_key(chunk)) end
if not is_held_by(chunk, ARGV[2]) then return 0 end
redis.call('HDEL', ATTEMPTS, chunk .. ':counted', chunk .. ':isolated', chunk .. ':holder')
redis.call('SREM', LEASED, chunk)
redis.call('LREM', OPEN, 1, chunk)  -- the lease had expired
if ARGV[3] then
  redis.call('HINCRBY', ATTEMPTS, chunk .. ':retries', 1)
  redis.call('ZADD', DELAYED, tonumber(now()) + tonumber(ARGV[3]), chunk)
  schedule_check(tonumber(ARGV[3]))
else
  redis.call('LPUSH', OPEN, chunk)
  schedule_check(0)
end
finish_if_done()
return 1
