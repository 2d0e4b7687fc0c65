-- Accepts a job: from here on it is queued, or blocked as long as it waits for others, and all its chunks are open.
-- ARGV: chunks, records. Returns 'accepted', or the status that prevents it.
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
if #predecessors(job_id()) > 0 then
  redis.call('HSET', JOB, 'status', 'blocked')
  hold_predecessors()
  decide(job_id())
elseif tonumber(ARGV[1]) == 0 then
  finish('completed')
end
return 'accepted'
