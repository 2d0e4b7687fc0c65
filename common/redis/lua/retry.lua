-- Begins a new round over chunks with failed records (opened by `reopen_failed`), chunks that never finished, and those
-- whose outcomes are lost (opened by `forget_commits`); a job that only lacks its end is ended. If OPEN or COMMITS was
-- deleted, the round begins all the same: the reaper recovers the chunks that are on no list. ARGV: a name for this
-- call, and the round that `reopen_failed` saw. Returns {status before, open chunks}; {status, -1} if there is nothing
-- to retry, {'unknown', -1} without a job, {status, -2} if the job is in another round by now, {reason, -3} if it never
-- ran because a job that it waits for has failed, and that has not changed.
local answered = redis.call('HGET', JOB, 'retry')
if answered and string.match(answered, '^(%S+)') == ARGV[1] then
  -- The answer was lost: repeat it.
  local before, open = string.match(answered, '^%S+ (%S+) (%d+)$')
  return { before, tonumber(open) }
end
local word = status()
if not word or unfinished(word) or not redis.call('HGET', JOB, 'accepted_at') then return { word or 'unknown', -1 } end
if redis.call('HGET', JOB, 'round') ~= ARGV[2] then return { word, -2 } end
local verdict, why = verdict_on(job_id())
if verdict == 'cancelled' then return { why, -3 } end
for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
  redis.call('DEL', lease_key(chunk))
  if redis.call('HEXISTS', COMMITS, chunk) == 0 then redis.call('RPUSH', OPEN, chunk) end
end
open_chunks(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', '+inf'))
redis.call('UNLINK', LEASED, DELAYED, ATTEMPTS, TICKETS, REFUSALS)
local open = redis.call('LLEN', OPEN)
local done = open == 0 and all_committed()
if done and word == 'completed' then return { word, 0 } end
redis.call('HSET', JOB, 'retry', ARGV[1] .. ' ' .. word .. ' ' .. open)
redis.call('HDEL', JOB, 'finished_at', 'failure_code', 'failure_message')
persist_keys()
hold_predecessors()
if done then
  -- It ended when only the commit of its output was left: the same round continues.
  redis.call('HSET', JOB, 'status', 'running')
  finish_if_done()
else
  redis.call('HINCRBY', JOB, 'round', 1)
  redis.call('HSET', JOB, 'status', verdict == 'blocked' and 'blocked' or 'queued', 'failed_in_round', 0)
  redis.call('HDEL', JOB, 'started_at')
  if verdict == 'ready' then redis.call('HSET', JOB, 'unblocked', 1) end
end
return { word, open }
