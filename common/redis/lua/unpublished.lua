-- Gives {chunk, commits, chunk, commits, ...} of a job all of whose chunks are committed, whose outcomes are in files, and
-- not yet said to be all there; {} of any other.
if status() ~= 'running' or not all_committed() or not is_unpublished() then return {} end
return redis.call('HGETALL', LAYERS)
