-- Notes how far the work on a chunk has come, in what a later lease will not have to do again. ARGV: chunk, holder,
-- a number that grows. Gives 1 if no lease of this round had come so far.
if not in_hand(ARGV[1], ARGV[2]) then return 0 end
local furthest = tonumber(redis.call('HGET', ATTEMPTS, ARGV[1] .. ':furthest')) or 0
if tonumber(ARGV[3]) <= furthest then return 0 end
redis.call('HSET', ATTEMPTS, ARGV[1] .. ':furthest', ARGV[3])
step_forward(ARGV[1], 0)
return 1
