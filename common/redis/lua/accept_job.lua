-- Accepts a job: from here on it is queued, and all its chunks are open. ARGV: chunks, records.
-- The answer may have been lost: a job that is accepted already was accepted by this call.
if not status() then return 'unknown' end
if redis.call('HGET', JOB, 'accepted_at') then return 'queued' end
if status() ~= 'submitting' then return status() end
redis.call('HSET', JOB, 'status', 'queued', 'accepted_at', now(), 'chunks', ARGV[1], 'records', ARGV[2])
local chunks = {}
for chunk = 0, tonumber(ARGV[1]) - 1 do
  chunks[#chunks + 1] = chunk
end
open_chunks(chunks)
schedule_check(0)
if tonumber(ARGV[1]) == 0 then finish('completed') end
return 'queued'
