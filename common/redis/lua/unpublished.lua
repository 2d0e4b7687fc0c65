-- Gives {chunk, versions, chunk, versions, ...} of a job all of whose chunks are committed, and whose output is not yet
-- said to be whole; {} of any other.
if status() ~= 'running' or not all_committed() or not is_unpublished() then return {} end
return redis.call('HGETALL', LAYERS)
