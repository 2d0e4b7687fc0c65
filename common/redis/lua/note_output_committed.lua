-- Notes that the outcomes of a job are all in their files, which completes it. ARGV: round. Returns 1 if it was this call.
if status() ~= 'running' or redis.call('HGET', JOB, 'round') ~= ARGV[1] or not all_committed() then return 0 end
redis.call('HSET', JOB, 'output_committed', ARGV[1])
finish_if_done()
return 1
