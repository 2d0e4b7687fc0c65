-- Notes that the output of a job is complete, which completes the job. ARGV: round. Returns 1 if this call did it.
if status() ~= 'running' or redis.call('HGET', JOB, 'round') ~= ARGV[1] or not all_committed() then return 0 end
redis.call('HSET', JOB, 'output_committed', ARGV[1])
finish_if_done()
return 1
