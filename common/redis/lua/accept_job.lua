-- Accepts a job: from here on it is queued, or blocked as long as it waits for others, and all its chunks are open.
-- ARGV: chunks, records, the jobs that it waits for (ids, with a space between), '1' if it runs even if these fail.
-- Returns 'accepted', or the status that prevents it.
-- The answer may have been lost: a job that is accepted already was accepted by this call.
if not status() then return 'unknown' end
if redis.call('HGET', JOB, 'accepted_at') then return 'accepted' end
if status() ~= 'submitting' then return status() end
redis.call('HSET', JOB, 'status', 'queued', 'accepted_at', now(), 'chunks', ARGV[1], 'records', ARGV[2])
local chunks = {}
for chunk = 0, tonumber(ARGV[1]) - 1 do
  chunks[#chunks + 1] = chunk
end
open_chunks(chunks)
schedule_check(0)
if ARGV[3] ~= '' then
  redis.call('HSET', JOB, 'status', 'blocked', 'after', ARGV[3])
  if ARGV[4] == '1' then redis.call('HSET', JOB, 'after_any', 1) end
  hold_predecessors()
  decide(job_id())
elseif tonumber(ARGV[1]) == 0 then
  finish('completed')
end
return 'accepted'
