-- Renews a lease. ARGV: chunk, holder, lease in ms, round. Returns the job's status, or 'lost'.
-- An expired lease is restored while nobody else has the chunk: PEXPIRE alone works even when Redis is full.
if redis.call('HGET', JOB, 'round') ~= ARGV[4] then return 'lost' end
local key = lease_key(ARGV[1])
local holder = redis.call('GET', key)
if holder == ARGV[2] then
  redis.call('PEXPIRE', key, ARGV[3])
  return status() or 'lost'
end
if holder or not is_held_by(ARGV[1], ARGV[2]) then return 'lost' end
if redis.call('SISMEMBER', LEASED, ARGV[1]) == 0 and redis.call('LREM', OPEN, 1, ARGV[1]) == 0 then return 'lost' end
redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
redis.call('SADD', LEASED, ARGV[1])
schedule_check(ARGV[3] / 1000)
return status()
