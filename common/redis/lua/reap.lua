-- Opens chunks again whose lease ran out. ARGV: seconds after which a silent producer is given up.
-- Gives the chunks opened, or {-1} if the job was given up because its producer died.
local word = status()
local opened = {}
if word == 'submitting' then
  local seen = tonumber(redis.call('HGET', JOB, 'producer_seen'))
  if tonumber(now()) - seen < tonumber(ARGV[1]) then return opened end
  redis.call('HSET', JOB, 'failure_code', 'producer_died',
    'failure_message', 'The command that submitted this job ended before all of it was there; nothing was run.')
  -- Whoever comes with its idempotency key goes on with what is there.
  if not redis.call('HGET', JOB, 'mapping') then redis.call('UNLINK', INPUT) end
  finish('failed')
  return { -1 }
end
if not unfinished(word) then return opened end
wake()
for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
  if redis.call('EXISTS', lease_key(chunk)) == 0 then
    redis.call('SREM', LEASED, chunk)
    redis.call('LPUSH', OPEN, chunk)
    opened[#opened + 1] = tonumber(chunk)
  end
end
finish_if_over()
return opened
