-- Opens a chunk again that its holder cannot finish; it comes first. ARGV: chunk, holder, and after a fault that may
-- pass, how many seconds the chunk rests before it is tried again (none: it was given back unharmed).
-- Of a job that has ended it stays among the leased ones: a retry opens those.
if redis.call('GET', lease_key(ARGV[1])) ~= ARGV[2] then return 0 end
redis.call('DEL', lease_key(ARGV[1]))
if not unfinished(status()) then return 1 end
redis.call('SREM', LEASED, ARGV[1])
redis.call('HDEL', ATTEMPTS, ARGV[1] .. ':begun', ARGV[1] .. ':now')
if redis.call('HEXISTS', COMMITS, ARGV[1]) == 0 then
  if ARGV[3] then
    redis.call('HINCRBY', ATTEMPTS, ARGV[1] .. ':tries', 1)
    redis.call('ZADD', RESTING, tonumber(now()) + tonumber(ARGV[3]), ARGV[1])
  else
    redis.call('LPUSH', OPEN, ARGV[1])
  end
end
finish_if_over()
return 1
