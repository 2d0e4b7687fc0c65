-- Takes over the submitting of a job whose producer fell silent. ARGV: token of the producer that asks, seconds of
-- silence. Gives {'taken', records, chunks, digest}: what is written; or {'busy'}, {'accepted'} (or over), {'unknown'}.
local word = status()
if not word then return { 'unknown' } end
if word == 'failed' and redis.call('HGET', JOB, 'failure_code') == 'producer_died' then
  redis.call('HSET', JOB, 'status', 'submitting')
  redis.call('HDEL', JOB, 'finished_at', 'failure_code', 'failure_message')
  live_on()
elseif word ~= 'submitting' then
  return { 'accepted' }
elseif redis.call('HGET', JOB, 'producer') ~= ARGV[1]
  -- Seen in the future: the clock was set back.
  and math.abs(now() - redis.call('HGET', JOB, 'producer_seen')) < tonumber(ARGV[2]) then
  return { 'busy' }
end
local chunks = tonumber(redis.call('HGET', JOB, 'written_chunks') or 0)
if redis.call('HLEN', INPUT) < chunks then
  -- Somebody cleared them away: it begins anew.
  redis.call('UNLINK', INPUT)
  redis.call('HDEL', JOB, 'written_records', 'written_chunks', 'written_digest')
  chunks = 0
end
redis.call('HSET', JOB, 'producer', ARGV[1], 'producer_seen', now())
local records = tonumber(redis.call('HGET', JOB, 'written_records') or 0)
return { 'taken', records, chunks, redis.call('HGET', JOB, 'written_digest') or '' }
