-- Returns {chunk, commits, chunk, commits, ...} of a job all of whose chunks are committed, whose outcomes are in files, and
-- not yet said to be all there; {} of any other. A chunk whose commits are lost has ''.
if status() ~= 'running' or not all_committed() or not is_output_uncommitted() then return {} end
local found = redis.call('HGETALL', COMMIT_HISTORY)
if lacks_history() then
  for _, chunk in ipairs(redis.call('HKEYS', COMMITS)) do
    if redis.call('HEXISTS', COMMIT_HISTORY, chunk) == 0 then
      found[#found + 1] = chunk
      found[#found + 1] = ''
    end
  end
end
return found
