-- Opens some of the chunks with failed records, ahead of `retry`: a hundred thousand at once would hold up everybody.
-- ARGV: cursor ('0' to begin with). Returns {the next cursor, round}; with '0' all are through. Of a job that has not ended
-- it returns no round, so that nothing of it is discarded.
-- Until the retry nobody sees it: the job has ended, and what was committed in its last round lies in COMMIT_HISTORY.
local round = redis.call('HGET', JOB, 'round')
if not round or unfinished(status()) then return { '0', '' } end
if ARGV[1] == '0' then restore_history() end
local answer = redis.call('HSCAN', FAILED_COUNTS, ARGV[1], 'COUNT', 2000)
local flawed, committed = {}, {}
for i = 1, #answer[2], 2 do
  flawed[#flawed + 1] = answer[2][i]
end
in_parts(flawed, function(part)
  -- One that was not committed in the round that has ended is open already.
  for i, commit in ipairs(redis.call('HMGET', COMMITS, unpack(part))) do
    if commit then committed[#committed + 1] = part[i] end
  end
end)
in_parts(committed, function(part)
  redis.call('HDEL', COMMITS, unpack(part))
  redis.call('RPUSH', OPEN, unpack(part))
end)
redis.call('PEXPIRE', OPEN, redis.call('PTTL', JOB))
return { answer[1], round }
