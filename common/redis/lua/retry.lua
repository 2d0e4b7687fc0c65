-- Opens a new round over chunks with failed records (which `reopen` has opened), chunks that never ended, and those whose
-- outcomes are lost (which `discard` has opened); a job that lacks nothing but its end is ended. Where OPEN or COMMITS
-- was deleted the round begins all the same: the reaper finds the chunks that are on no list.
-- ARGV: the name of this call, and the round that `reopen` saw. Returns {status before, open chunks}; {status, -1} where
-- there is nothing to retry, {'unknown', -1} without a job, {status, -2} where the round is another by now.
local asked = redis.call('HGET', JOB, 'retry')
if asked and string.match(asked, '^(%S+)') == ARGV[1] then
  -- The answer was lost on its way: it is given once more.
  local before, open = string.match(asked, '^%S+ (%S+) (%d+)$')
  return { before, tonumber(open) }
end
local word = status()
if not word or unfinished(word) or not redis.call('HGET', JOB, 'accepted_at') then return { word or 'unknown', -1 } end
if redis.call('HGET', JOB, 'round') ~= ARGV[2] then return { word, -2 } end
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
if done then
  -- It was ended when nothing was left but to say that its output is whole: the round goes on to its end.
  redis.call('HSET', JOB, 'status', 'running')
  finish_if_done()
else
  redis.call('HINCRBY', JOB, 'round', 1)
  redis.call('HSET', JOB, 'status', 'queued', 'failed_in_round', 0)
  redis.call('HDEL', JOB, 'started_at')
end
return { word, open }
