-- Marks a chunk as done, once. ARGV: chunk, round, serial, succeeded, failed, truncated, facts (JSON), and how many
-- records may fail in one round; with more the job fails, be it over or not (none: any number).
-- Gives 'committed', or why not: 'double', 'stale' (another round, or one whose earlier outcomes are lost), 'closed' (the
-- job has ended).
-- Whose commit it is does not matter, only that it is the first of this round.
local function take_off_lists(chunk)
  -- A late commit: the chunk was opened again meanwhile, or its rest.
  if redis.call('SREM', LEASED, chunk) == 0 and redis.call('ZREM', RESTING, chunk) == 0 then
    redis.call('LREM', OPEN, 1, chunk)
  end
  redis.call('DEL', lease_key(chunk))
end

local word = status()
if not unfinished(word) then return 'closed' end
if redis.call('HGET', JOB, 'round') ~= ARGV[2] then return 'stale' end
if redis.call('HEXISTS', COMMITS, ARGV[1]) == 1 then return 'double' end
local before = tonumber(redis.call('HGET', FLAWED, ARGV[1])) or 0
if before > 0 and ARGV[4] + ARGV[5] == before and redis.call('HEXISTS', LAYERS, ARGV[1]) == 0 then
  -- These are only the records that had failed, and LAYERS, which leads to the outcomes of the others, was deleted: the
  -- whole chunk is run again.
  redis.call('HDEL', FLAWED, ARGV[1])
  redis.call('HINCRBY', JOB, 'failed', 0 - before)
  take_off_lists(ARGV[1])
  redis.call('RPUSH', OPEN, ARGV[1])
  look_in(0)
  finish_if_over()
  return 'stale'
end
local commit = table.concat({ ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] }, ':')
redis.call('HSET', COMMITS, ARGV[1], commit)
local layers = redis.call('HGET', LAYERS, ARGV[1])
redis.call('HSET', LAYERS, ARGV[1], (layers and layers .. ' ' or '') .. commit)
redis.call('HINCRBY', JOB, 'succeeded', ARGV[4])
-- What failed in an earlier round counts as failed until now: these outcomes are of the same records.
redis.call('HINCRBY', JOB, 'failed', tonumber(ARGV[5]) - before)
local failed = redis.call('HINCRBY', JOB, 'failed_in_round', ARGV[5])
redis.call('HINCRBY', JOB, 'truncated', ARGV[6])
redis.call('HSET', JOB, 'facts', ARGV[7], 'stage', '')
if tonumber(ARGV[5]) > 0 then
  redis.call('HSET', FLAWED, ARGV[1], ARGV[5])
else
  redis.call('HDEL', FLAWED, ARGV[1])
end
take_off_lists(ARGV[1])
if ARGV[8] and failed > tonumber(ARGV[8]) and word ~= 'cancelling' then
  redis.call('HSET', JOB, 'failure_code', 'too_many_errors',
    'failure_message', failed .. ' records failed, and no more than ' .. ARGV[8] .. ' were to (--max-errors).')
  finish('failed')
else
  -- Cancelled while its last chunk was in hand: nothing is left to cancel but the end of its output.
  if word == 'cancelling' and all_committed() and is_unpublished() then redis.call('HSET', JOB, 'status', 'running') end
  finish_if_over()
end
return 'committed'
