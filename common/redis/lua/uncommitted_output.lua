-- Returns {chunk, commits, chunk, commits, ...} of a job all of whose chunks are committed, but not its output in
-- files; {} of any other job. The commits of a chunk are '' if its history is lost.
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
