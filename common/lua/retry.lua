-- Opens a new round over chunks with failed records and chunks that never ended. Gives {status before, open chunks}.
local word = status()
if not word or unfinished(word) or not redis.call('HGET', JOB, 'sealed_at') then return { word or 'unknown', -1 } end
for _, chunk in ipairs(redis.call('SMEMBERS', LEASED)) do
  redis.call('DEL', lease_key(chunk))
  if redis.call('HEXISTS', COMMITS, chunk) == 0 then redis.call('RPUSH', OPEN, chunk) end
end
for _, chunk in ipairs(redis.call('SMEMBERS', FLAWED)) do
  redis.call('HDEL', COMMITS, chunk)
  redis.call('RPUSH', OPEN, chunk)
end
redis.call('DEL', LEASED, FLAWED, ATTEMPTS, TICKETS, REFUSALS)
local open = redis.call('LLEN', OPEN)
if open == 0 then return { word, 0 } end
redis.call('HINCRBY', JOB, 'round', 1)
redis.call('HSET', JOB, 'status', 'queued', 'failed', 0)
redis.call('HDEL', JOB, 'started_at', 'finished_at', 'failure_code', 'failure_message')
live_on()
return { word, open }
