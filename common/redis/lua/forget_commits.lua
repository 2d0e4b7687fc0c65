-- Deletes the commits of chunks whose outcomes are lost: they count as never run, and are open again unless leased.
-- ARGV: round, chunks... Returns 1, or 0 if the job is in another round by now.
if redis.call('HGET', JOB, 'round') ~= ARGV[1] then return 0 end
for i = 2, #ARGV do
  local chunk = ARGV[i]
  local commits = redis.call('HGET', COMMIT_HISTORY, chunk) or redis.call('HGET', COMMITS, chunk) or ''
  for version in string.gmatch(commits, '(%d+:%d+):%d+:%d+:%d+') do
    redis.call('HDEL', OUTPUT, chunk .. ':' .. version)
  end
  local succeeded, failed, truncated = sums_of(commits)
  redis.call('HINCRBY', JOB, 'succeeded', 0 - succeeded)
  redis.call('HINCRBY', JOB, 'failed', 0 - failed)
  redis.call('HINCRBY', JOB, 'truncated', 0 - truncated)
  redis.call('HDEL', COMMIT_HISTORY, chunk)
  redis.call('HDEL', FAILED_COUNTS, chunk)
  if redis.call('HDEL', COMMITS, chunk) == 1 then redis.call('RPUSH', OPEN, chunk) end
end
if unfinished(status()) then schedule_check(0) else expire_with_job(OPEN) end
return 1
