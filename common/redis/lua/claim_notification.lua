-- Begins an attempt to send a job's notification, unless another worker has begun one. ARGV: seconds after which it
-- counts as failed if its outcome is not noted. Returns {its number, from 1, when the job ended}; {} if there is
-- nothing to send now.
local due = tonumber(redis.call('HGET', JOB, 'notify_next_at') or '')
if not due then
  redis.call('ZREM', NOTIFICATIONS, job_id())
  return {}
end
if due > tonumber(now()) then return {} end
local number = (tonumber(redis.call('HGET', JOB, 'notify_attempts')) or 0) + 1
local next_at = tonumber(now()) + tonumber(ARGV[1])
redis.call('HSET', JOB, 'notify_attempts', number, 'notify_next_at', next_at)
redis.call('ZADD', NOTIFICATIONS, next_at, job_id())
return { number, redis.call('HGET', JOB, 'finished_at') or '' }
