-- Prelude of every script (common/redis/scripts.py). KEYS are the job's own in the order of JobKeys, then seven more.
local OWN = #KEYS - 7
local JOB, INPUT, OUTPUT, OPEN, LEASED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ATTEMPTS, COMMITS, COMMIT_HISTORY, FAILED_COUNTS = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local TICKETS, REFUSALS = KEYS[10], KEYS[11]
local DELAYED, ACTIVE, JOBS, DUE = KEYS[12], KEYS[OWN + 1], KEYS[OWN + 2], KEYS[OWN + 3]
local SCHEMA, TOTALS, SHOWN, NOTIFICATIONS = KEYS[OWN + 4], KEYS[OWN + 5], KEYS[OWN + 6], KEYS[OWN + 7]
-- Runners name error codes as they like: more fields of TOTALS than that count as one.
local MAX_TOTALS = 200
-- No delay of a chunk is longer, in seconds: where one seems to be, the clock was set back.
local MAX_DELAY = 120

local function now()
  local time = redis.call('TIME')
  return time[1] .. '.' .. string.format('%06d', time[2])
end

local function lease_key(chunk)
  return JOB .. ':lease:' .. chunk
end

local function job_id()
  return string.match(JOB, '([^:]+)$')
end

-- Has a reaper check the job in `seconds` seconds, unless it is to check it earlier.
local function schedule_check(seconds)
  redis.call('ZADD', DUE, 'LT', tonumber(now()) + seconds, job_id())
end

-- The key in Redis of this job's idempotency key, if it still names this job.
local function own_key()
  local key = redis.call('HGET', JOB, 'idempotency_key')
  return key and redis.call('GET', key) == job_id() and key
end

local function status()
  return redis.call('HGET', JOB, 'status')
end

local function unfinished(word)
  return word == 'submitting' or word == 'queued' or word == 'running' or word == 'cancelling'
end

-- Adds to a total of the queue, or to that of `other` if there are too many. Totals are for metrics only: whatever is
-- wrong with them must not stop a job.
local function add_total(field, number, other)
  if other and (tonumber(redis.pcall('HLEN', TOTALS)) or 0) >= MAX_TOTALS and redis.pcall('HEXISTS', TOTALS, field) == 0 then
    field = other
  end
  redis.pcall('HINCRBY', TOTALS, field, number)
end

-- The job is unfinished from here on, and monitors show it as such until they are told of its end.
local function mark_active()
  redis.call('SADD', ACTIVE, job_id())
  redis.call('SADD', SHOWN, job_id())
end

-- What was submitted; an empty table if that cannot be read.
local function spec()
  local sound, found = pcall(cjson.decode, redis.call('HGET', JOB, 'spec'))
  return sound and type(found) == 'table' and found or {}
end

-- Lets a worker tell the job's URL, if it has one, how it ended.
local function schedule_notification()
  if type(spec().notify) ~= 'string' then return end
  redis.call('HSET', JOB, 'notify_state', 'pending', 'notify_attempts', 0, 'notify_next_at', now())
  redis.call('ZADD', NOTIFICATIONS, now(), job_id())
end

-- Forgets the notification of the job's latest end: it has not ended any more.
local function cancel_notification()
  redis.call('HDEL', JOB, 'notify_state', 'notify_attempts', 'notify_last_at', 'notify_next_at', 'notify_error')
  redis.call('ZREM', NOTIFICATIONS, job_id())
end

-- From here on the job's keys have a time to live; `persist_keys` removes it.
local function finish(word)
  local ttl = redis.call('HGET', JOB, 'ttl_ms')
  redis.call('HSET', JOB, 'status', word, 'finished_at', now(), 'stage', '')
  add_total('jobs:' .. word, 1)
  schedule_notification()
  redis.call('SREM', ACTIVE, job_id())
  redis.call('ZREM', DUE, job_id())
  redis.call('DEL', TICKETS, REFUSALS)
  for i = 1, OWN do
    redis.call('PEXPIRE', KEYS[i], ttl)
  end
  local key = own_key()
  if key then redis.call('PEXPIRE', key, ttl) end
end

local function persist_keys()
  cancel_notification()
  for i = 1, OWN do
    redis.call('PERSIST', KEYS[i])
  end
  local key = own_key()
  if key then redis.call('PERSIST', key) end
  mark_active()
  schedule_check(0)
end

local function all_committed()
  return redis.call('HLEN', COMMITS) == tonumber(redis.call('HGET', JOB, 'chunks'))
end

-- Whether outcomes are in files, which a script cannot see, and not in OUTPUT.
local function is_in_files()
  local submitted = spec()
  return type(submitted.output) == 'table' or type(submitted.store) == 'string'
end

-- Whether outcomes are in files, and no worker has noted yet that all of them are there.
local function is_output_uncommitted()
  return is_in_files() and redis.call('HGET', JOB, 'output_committed') ~= redis.call('HGET', JOB, 'round')
end

-- Whether COMMIT_HISTORY lacks chunks that are committed: it was deleted.
local function lacks_history()
  return redis.call('HLEN', COMMIT_HISTORY) < redis.call('HLEN', COMMITS)
end

-- Restores what a deleted COMMIT_HISTORY had of chunks that were committed in the first round. Of those that ran again,
-- the commits of earlier rounds are known nowhere else: they count as lost.
local function restore_history()
  if not lacks_history() then return end
  local commits = redis.call('HGETALL', COMMITS)
  for i = 1, #commits, 2 do
    if string.match(commits[i + 1], '^0:') and redis.call('HEXISTS', COMMIT_HISTORY, commits[i]) == 0 then
      redis.call('HSET', COMMIT_HISTORY, commits[i], commits[i + 1])
    end
  end
  if not unfinished(status()) then redis.call('PEXPIRE', COMMIT_HISTORY, redis.call('PTTL', JOB)) end
end

-- Sums of the succeeded, failed and truncated records of a chunk over its commits. A later round runs what failed in
-- the one before.
local function sums_of(commits)
  local succeeded, failed, truncated = 0, 0, 0
  for s, f, t in string.gmatch(commits, '%d+:%d+:(%d+):(%d+):(%d+)') do
    succeeded, failed, truncated = succeeded + tonumber(s), tonumber(f), truncated + tonumber(t)
  end
  return succeeded, failed, truncated
end

-- Recounts the records of a job where their sum is wrong: COMMIT_HISTORY was deleted, so that more ran again than was
-- subtracted.
local function recount()
  local known = redis.call('HMGET', JOB, 'succeeded', 'failed', 'records')
  if (tonumber(known[1]) or 0) + (tonumber(known[2]) or 0) == tonumber(known[3]) or lacks_history() then return end
  local succeeded, failed, truncated = 0, 0, 0
  local histories = redis.call('HGETALL', COMMIT_HISTORY)
  for i = 2, #histories, 2 do
    local s, f, t = sums_of(histories[i])
    succeeded, failed, truncated = succeeded + s, failed + f, truncated + t
  end
  redis.call('HSET', JOB, 'succeeded', succeeded, 'failed', failed, 'truncated', truncated)
end

-- Ends a job all of whose chunks are committed.
local function complete()
  if not is_in_files() and (lacks_history() or redis.call('HLEN', OUTPUT) < redis.call('HLEN', COMMIT_HISTORY)) then
    redis.call('HSET', JOB, 'failure_code', 'results_lost', 'failure_message',
      'Outcomes are missing from Redis: a key was deleted or evicted. A retry runs those chunks again.')
    finish('failed')
  else
    finish('completed')
  end
end

local function finish_if_done()
  if all_committed() then
    restore_history()
    recount()
  end
  if status() == 'cancelling' then
    if redis.call('SCARD', LEASED) > 0 then return end
    if all_committed() and not is_output_uncommitted() then complete() else finish('cancelled') end
  elseif all_committed() then
    if is_output_uncommitted() then schedule_check(0) else complete() end
  end
end

-- Whether that holder has the chunk, or had it when its lease ran out and nobody has leased it since.
-- Holders are unique, and forgotten when they release the chunk and when a new round begins.
local function is_held_by(chunk, holder)
  return redis.call('HGET', ATTEMPTS, chunk .. ':holder') == holder and redis.call('HEXISTS', COMMITS, chunk) == 0
    and unfinished(status())
end

-- The present lease does not count as a failed attempt, however it ends, nor do earlier ones beyond `kept`.
local function count_as_progress(chunk, kept)
  redis.call('HDEL', ATTEMPTS, chunk .. ':counted')
  if (tonumber(redis.call('HGET', ATTEMPTS, chunk)) or 0) > tonumber(kept) then
    redis.call('HSET', ATTEMPTS, chunk, kept)
  end
end

-- Opens the chunks whose delay is over; they come first.
local function open_delayed()
  for _, over in ipairs({ { '-inf', now() }, { tonumber(now()) + MAX_DELAY, '+inf' } }) do
    for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, over[1], over[2])) do
      redis.call('ZREM', DELAYED, chunk)
      redis.call('LPUSH', OPEN, chunk)
    end
  end
end

-- Passes a long list to `each` in parts that fit into one call, which is much cheaper than a call for each member.
local function in_parts(list, each)
  for first = 1, #list, 1000 do
    each({ unpack(list, first, math.min(first + 999, #list)) })
  end
end

-- Puts chunks at the end of those that are open.
local function open_chunks(chunks)
  in_parts(chunks, function(part)
    redis.call('RPUSH', OPEN, unpack(part))
  end)
end
