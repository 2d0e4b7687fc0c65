-- Opens a page of the chunks with failed records, before `retry`: a hundred thousand at once would block Redis. ARGV:
-- cursor (first '0'). Returns {next cursor, round}; the cursor is '0' after the last page. The round is empty if the
-- job has not ended, so that nothing is deleted. Nobody sees it before the retry: the job has ended, and the commits of
-- its last round are in COMMIT_HISTORY.
local round = redis.call('HGET', JOB, 'round')
if not round or unfinished(status()) then return { '0', '' } end
if ARGV[1] == '0' then restore_history() end
local answer = redis.call('HSCAN', FAILED_COUNTS, ARGV[1], 'COUNT', 2000)
local flawed, committed = {}, {}
for i = 1, #answer[2], 2 do
  flawed[#flawed + 1] = answer[2][i]
end
in_parts(flawed, function(part)
  -- A chunk that was not committed in the last round is open already.
  for i, commit in ipairs(redis.call('HMGET', COMMITS, unpack(part))) do
    if commit then committed[#committed + 1] = part[i] end
  end
end)
in_parts(committed, function(part)
  redis.call('HDEL', COMMITS, unpack(part))
  redis.call('RPUSH', OPEN, unpack(part))
end)
expire_with_job(OPEN)
return { answer[1], round }
