-- Fails a job and keeps what is done. ARGV: code, message. Returns 1 if this call ended it.
if not unfinished(status()) then return 0 end
redis.call('HSET', JOB, 'failure_code', ARGV[1], 'failure_message', ARGV[2])
finish('failed')
return 1
