-- Opens a chunk again that its holder cannot finish; it comes first. ARGV: chunk, holder, what to add to its attempts (0 or -1).
-- Of a job that has ended it stays among the leased ones: a retry opens those.
if redis.call('GET', lease_key(ARGV[1])) ~= ARGV[2] then return 0 end
redis.call('DEL', lease_key(ARGV[1]))
if unfinished(status()) then
  redis.call('SREM', LEASED, ARGV[1])
  if redis.call('HEXISTS', COMMITS, ARGV[1]) == 0 then redis.call('LPUSH', OPEN, ARGV[1]) end
  redis.call('HINCRBY', ATTEMPTS, ARGV[1], ARGV[3])
  finish_if_over()
end
return 1
