-- Prelude of every script, without the functions that it does not need (common/redis/scripts.py). KEYS are the job's own
-- in the order of JobKeys, then eight more.
local OWN = #KEYS - 8
local JOB, INPUT, OUTPUT, OPEN, LEASED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ATTEMPTS, COMMITS, COMMIT_HISTORY, FAILED_COUNTS = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local TICKETS, REFUSALS = KEYS[10], KEYS[11]
local DELAYED, WAITERS, ACTIVE, JOBS, DUE = KEYS[12], KEYS[13], KEYS[OWN + 1], KEYS[OWN + 2], KEYS[OWN + 3]
local SCHEMA, TOTALS, SHOWN, NOTIFICATIONS = KEYS[OWN + 4], KEYS[OWN + 5], KEYS[OWN + 6], KEYS[OWN + 7]
local UNBLOCKED = KEYS[OWN + 8]
-- Runners name error codes as they like: more fields of TOTALS than that count as one.
local MAX_TOTALS = 200
-- No delay of a chunk is longer, in seconds: where one seems to be, the clock was set back.
local MAX_DELAY = 120
-- Jobs that wait for others and are decided about in one call; reapers decide about the rest as they scan all jobs.
local MAX_DECIDED = 250
-- Results of results of results: jobs that are read to make one record (common/inputs/job_split.py).
local MAX_DEPTH = 50

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

-- The key of another job that corresponds to one of this job's.
local function key_of(id, key)
  return string.sub(JOB, 1, -1 - #job_id()) .. id .. string.sub(key, #JOB + 1)
end

-- Has a reaper check the job in `seconds` seconds, unless it is to check it earlier.
local function schedule_check(seconds)
  redis.call('ZADD', DUE, 'LT', tonumber(now()) + seconds, job_id())
end

-- The key in Redis of a job's idempotency key, if it still names that job.
local function idempotency_key(id)
  local key = redis.call('HGET', key_of(id, JOB), 'idempotency_key')
  return key and redis.call('GET', key) == id and key
end

local function status()
  return redis.call('HGET', JOB, 'status')
end

local function unfinished(word)
  return word == 'submitting' or word == 'blocked' or word == 'queued' or word == 'running' or word == 'cancelling'
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

-- What was submitted; an empty table if that cannot be read. A name of a file may hold lone surrogates, which cjson
-- refuses: all surrogates are spaces here.
local function spec_of(id)
  local text = redis.call('HGET', key_of(id, JOB), 'spec') or ''
  local sound, found = pcall(cjson.decode, (string.gsub(text, '\\u[dD][89a-fA-F]%x%x', '\\u0020')))
  return sound and type(found) == 'table' and found or {}
end

-- Has a worker notify a job's URL, if it has one.
local function schedule_notification(id)
  if type(spec_of(id).notify) ~= 'string' then return end
  redis.call('HSET', key_of(id, JOB), 'notify_state', 'pending', 'notify_attempts', 0, 'notify_next_at', now())
  redis.call('ZADD', NOTIFICATIONS, now(), id)
end

-- Drops the notification of the job's latest end: the job runs again.
local function cancel_notification()
  redis.call('HDEL', JOB, 'notify_state', 'notify_attempts', 'notify_last_at', 'notify_next_at', 'notify_error')
  redis.call('ZREM', NOTIFICATIONS, job_id())
end

-- Gives the keys of a finished job a time to live, unless an unfinished one waits for it or reads its results.
local function let_expire(id)
  local state = redis.call('HMGET', key_of(id, JOB), 'status', 'ttl_ms')
  if not state[1] or unfinished(state[1]) or redis.call('ZCOUNT', key_of(id, WAITERS), 0, 0) > 0 then return end
  for i = 1, OWN do
    redis.call('PEXPIRE', key_of(id, KEYS[i]), state[2])
  end
  local key = idempotency_key(id)
  if key then redis.call('PEXPIRE', key, state[2]) end
end

-- Takes the time to live from a job's keys.
local function keep_keys(id)
  for i = 1, OWN do
    redis.call('PERSIST', key_of(id, KEYS[i]))
  end
  local key = idempotency_key(id)
  if key then redis.call('PERSIST', key) end
end

-- Gives a key that was written after the end of this job the job's time to live. It has none while others need the job.
local function expire_with_job(key)
  local left = redis.call('PTTL', JOB)
  if left >= 0 then redis.call('PEXPIRE', key, left) end
end

-- The ids of the jobs that a job was submitted to wait for.
local function predecessors(id)
  local after, found = spec_of(id).after, {}
  for _, other in ipairs(type(after) == 'table' and after or {}) do
    if type(other) == 'string' then found[#found + 1] = other end
  end
  return found
end

-- The job whose results are the input of a job, nil if there is none.
local function input_job(id)
  local inputs = spec_of(id).inputs
  local name = type(inputs) == 'table' and inputs[1]
  return type(name) == 'string' and string.match(name, '^job:(%x+)$') or nil
end

-- The ids of the jobs that a job needs until it ends: its predecessors, and where the results of one of these are its
-- input, those whose results are in turn the input of that one.
local function needed_by(id)
  local found = predecessors(id)
  local other = #found > 0 and input_job(id) or nil
  for _ = 1, MAX_DEPTH do
    other = other and input_job(other)
    if not other then break end
    found[#found + 1] = other
  end
  return found
end

-- This job waits for its predecessors or reads their results from here on, until it ends: theirs are kept.
local function hold_predecessors()
  for _, other in ipairs(needed_by(job_id())) do
    if redis.call('EXISTS', key_of(other, JOB)) == 1 then
      redis.call('ZADD', key_of(other, WAITERS), 0, job_id())
      keep_keys(other)
    end
  end
end

local function end_job(id, word)
  redis.call('HSET', key_of(id, JOB), 'status', word, 'finished_at', now(), 'stage', '')
  add_total('jobs:' .. word, 1)
  redis.pcall('PUBLISH', key_of(id, JOB) .. ':ended', word)  -- for those who wait; a user without that channel only waits longer
  schedule_notification(id)
  redis.call('SREM', ACTIVE, id)
  redis.call('ZREM', DUE, id)
  redis.call('DEL', key_of(id, TICKETS), key_of(id, REFUSALS))
  let_expire(id)
  for _, other in ipairs(needed_by(id)) do
    redis.call('ZADD', key_of(other, WAITERS), 'XX', 1, id)
    let_expire(other)
  end
end

-- Why a job does not run that waits for another. Of one that was itself cancelled for that reason, the first cause.
local function describe_end(id, word, code, message)
  if word == 'cancelled' and code == 'predecessor_failed' then return message end
  if not word then return 'job ' .. id .. ' was deleted or has expired' end
  if word == 'cancelled' then return 'job ' .. id .. ' was cancelled' end
  return 'job ' .. id .. ' failed: ' .. (code or '') .. ': ' .. (message or '')
end

-- Whether a job may run: 'ready'; 'blocked' while it waits for others; 'cancelled', and why, after one of these failed.
-- One that runs in any case, or had been ready before, only waits.
local function verdict_on(id)
  local waits_only = spec_of(id).after_any or redis.call('HGET', key_of(id, JOB), 'unblocked')
  local verdict = 'ready'
  for _, other in ipairs(predecessors(id)) do
    local state = redis.call('HMGET', key_of(other, JOB), 'status', 'failure_code', 'failure_message')
    if unfinished(state[1]) then
      verdict = 'blocked'
    elseif state[1] ~= 'completed' and not waits_only then
      return 'cancelled', describe_end(other, unpack(state))
    end
  end
  return verdict
end

-- Lets a blocked job run, or cancels it, once it is known which; returns the verdict.
local function decide(id)
  if redis.call('HGET', key_of(id, JOB), 'status') ~= 'blocked' then return end
  local verdict, why = verdict_on(id)
  if verdict == 'ready' then
    redis.call('HSET', key_of(id, JOB), 'status', 'queued', 'unblocked', 1)
    redis.call('SADD', UNBLOCKED, id)
    redis.call('ZADD', DUE, 'LT', now(), id)
  elseif verdict == 'cancelled' then
    redis.call('HSET', key_of(id, JOB), 'failure_code', 'predecessor_failed', 'failure_message', why)
    end_job(id, 'cancelled')
  end
  return verdict
end

-- Decides about the jobs that wait for one that has ended, and about those that wait for the ones cancelled thereby. One
-- whose keys are broken does not keep the others from running.
local function decide_waiters(id)
  local ended, left = { id }, MAX_DECIDED
  while #ended > 0 and left > 0 do
    local waiters = redis.call('ZRANGEBYSCORE', key_of(table.remove(ended), WAITERS), 0, 0, 'LIMIT', 0, left)
    left = left - #waiters
    for _, waiter in ipairs(waiters) do
      local is_sound, verdict = pcall(decide, waiter)
      if is_sound and verdict == 'cancelled' then ended[#ended + 1] = waiter end
    end
  end
end

-- Ends this job. From here on its keys have a time to live; `persist_keys` removes it.
local function finish(word)
  end_job(job_id(), word)
  decide_waiters(job_id())
end

local function persist_keys()
  cancel_notification()
  keep_keys(job_id())
  mark_active()
  schedule_check(0)
end

local function all_committed()
  return redis.call('HLEN', COMMITS) == tonumber(redis.call('HGET', JOB, 'chunks'))
end

-- Whether outcomes are in files, which a script cannot see, and not in OUTPUT.
local function is_in_files()
  local submitted = spec_of(job_id())
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
  if not unfinished(status()) then expire_with_job(COMMIT_HISTORY) end
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
  local done = all_committed()
  if done then
    restore_history()
    recount()
  end
  if status() == 'cancelling' then
    if redis.call('SCARD', LEASED) > 0 then return end
    if done and not is_output_uncommitted() then complete() else finish('cancelled') end
  elseif done then
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
  if redis.call('EXISTS', DELAYED) == 0 then return end
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
