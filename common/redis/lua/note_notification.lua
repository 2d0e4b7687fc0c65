-- Notes the outcome of an attempt to send a job's notification. ARGV: its number, when the job had ended, the state of the
-- notification, why the attempt failed or '', and the seconds until the next one or ''. Does nothing if another attempt
-- has begun, or the job was retried.
local known = redis.call('HMGET', JOB, 'notify_attempts', 'finished_at', 'notify_next_at')
if known[1] ~= ARGV[1] or (known[2] or '') ~= ARGV[2] or not known[3] then return end
-- First, because Redis lets a script that has removed something write even when it is full.
redis.call('ZREM', NOTIFICATIONS, job_id())
redis.call('HSET', JOB, 'notify_state', ARGV[3], 'notify_error', ARGV[4], 'notify_last_at', now())
if ARGV[5] == '' then
  redis.call('HDEL', JOB, 'notify_next_at')
else
  local next_at = tonumber(now()) + tonumber(ARGV[5])
  redis.call('HSET', JOB, 'notify_next_at', next_at)
  redis.call('ZADD', NOTIFICATIONS, next_at, job_id())
end
