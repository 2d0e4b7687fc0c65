-- Commits a chunk, once. ARGV: chunk, round, lease number, succeeded, failed, truncated, run_info (JSON), how many records
-- may fail in one round before the job fails, or '', the id of the ranges that its vectors have, or '', the milliseconds
-- of computing, and the number of failed records by error code: code, number, code, number, ... Returns 'committed', or why not: 'double', 'stale' (another round, one whose earlier outcomes are lost, or other ranges than the
-- job's), 'closed' (the job has ended). It does not matter who commits, only that it is the first commit of this round.
local function take_off_lists(chunk)
  -- A late commit: the chunk was opened again meanwhile, or delayed.
  if redis.call('SREM', LEASED, chunk) == 0 and redis.call('ZREM', DELAYED, chunk) == 0 then
    redis.call('LREM', OPEN, 1, chunk)
  end
  redis.call('DEL', lease_key(chunk))
end

local function run_again(chunk)
  take_off_lists(chunk)
  redis.call('RPUSH', OPEN, chunk)
  schedule_check(0)
  finish_if_done()
end

local word = status()
if not unfinished(word) then return 'closed' end
if redis.call('HGET', JOB, 'round') ~= ARGV[2] then return 'stale' end
if redis.call('HEXISTS', COMMITS, ARGV[1]) == 1 then return 'double' end
local before = tonumber(redis.call('HGET', FAILED_COUNTS, ARGV[1])) or 0
if before > 0 and ARGV[4] + ARGV[5] == before and redis.call('HEXISTS', COMMIT_HISTORY, ARGV[1]) == 0 then
  -- These are only the records that had failed, and COMMIT_HISTORY, which leads to the outcomes of the others, was
  -- deleted: the whole chunk runs again.
  redis.call('HDEL', FAILED_COUNTS, ARGV[1])
  redis.call('HINCRBY', JOB, 'failed', 0 - before)
  run_again(ARGV[1])
  return 'stale'
end
if ARGV[9] ~= '' and redis.call('HGET', JOB, 'ranges_id') ~= ARGV[9] then
  -- Redis lost its last second: the ranges that this worker had read were not among what it kept.
  run_again(ARGV[1])
  return 'stale'
end
local commit = table.concat({ ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] }, ':')
redis.call('HSET', COMMITS, ARGV[1], commit)
local history = redis.call('HGET', COMMIT_HISTORY, ARGV[1])
redis.call('HSET', COMMIT_HISTORY, ARGV[1], (history and history .. ' ' or '') .. commit)
redis.call('HINCRBY', JOB, 'succeeded', ARGV[4])
-- What failed in an earlier round counted as failed until now: these outcomes are of the same records.
redis.call('HINCRBY', JOB, 'failed', tonumber(ARGV[5]) - before)
local failed = redis.call('HINCRBY', JOB, 'failed_in_round', ARGV[5])
redis.call('HINCRBY', JOB, 'truncated', ARGV[6])
redis.call('HINCRBY', JOB, 'compute_ms', ARGV[10])
add_total('records:succeeded', ARGV[4])
for i = 11, #ARGV, 2 do
  add_total('records:failed:' .. ARGV[i], ARGV[i + 1], 'records:failed:other')
end
redis.call('HSET', JOB, 'run_info', ARGV[7], 'stage', '')
if tonumber(ARGV[5]) > 0 then
  redis.call('HSET', FAILED_COUNTS, ARGV[1], ARGV[5])
else
  redis.call('HDEL', FAILED_COUNTS, ARGV[1])
end
take_off_lists(ARGV[1])
if ARGV[8] ~= '' and failed > tonumber(ARGV[8]) and word ~= 'cancelling' then
  redis.call('HSET', JOB, 'failure_code', 'too_many_errors',
    'failure_message', failed .. ' records failed, and only ' .. ARGV[8] .. ' may (--max-errors).')
  finish('failed')
else
  -- Cancelled while its last chunk was leased: nothing is left to cancel, and its output is to be committed.
  if word == 'cancelling' and all_committed() and is_output_uncommitted() then
    redis.call('HSET', JOB, 'status', 'running')
  end
  finish_if_done()
end
return 'committed'
