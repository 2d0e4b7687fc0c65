-- Notes the progress of a chunk that a later lease need not repeat. ARGV: chunk, holder, a growing number. Returns 1 if
-- no lease of this round had come so far.
if not is_held_by(ARGV[1], ARGV[2]) then return 0 end
local furthest = tonumber(redis.call('HGET', ATTEMPTS, ARGV[1] .. ':progress')) or 0
if tonumber(ARGV[3]) <= furthest then return 0 end
redis.call('HSET', ATTEMPTS, ARGV[1] .. ':progress', ARGV[3])
count_as_progress(ARGV[1], 0)
return 1
