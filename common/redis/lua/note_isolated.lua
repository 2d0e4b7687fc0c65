-- Notes which isolated record of a chunk the worker survived, and which runs next. ARGV: chunk, holder,
-- position done ('' for none), position that runs next ('' for none), deaths that stay counted after progress.
if not is_held_by(ARGV[1], ARGV[2]) then return 0 end
if ARGV[3] ~= '' and redis.call('HSETNX', ATTEMPTS, ARGV[1] .. ':done:' .. ARGV[3], 1) == 1 then
  count_as_progress(ARGV[1], ARGV[5])
end
if ARGV[4] == '' then
  redis.call('HDEL', ATTEMPTS, ARGV[1] .. ':isolated')
else
  redis.call('HSET', ATTEMPTS, ARGV[1] .. ':isolated', ARGV[4])
end
return 1
