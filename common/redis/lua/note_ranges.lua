-- Notes the ranges of a job's vectors, unless there are some. ARGV: their id, the ranges (JSON). Returns {id, ranges} of
-- those that count, or {} if the job has ended.
if not unfinished(status()) then return {} end
if redis.call('HEXISTS', JOB, 'ranges') == 0 then
  redis.call('HSET', JOB, 'ranges_id', ARGV[1], 'ranges', ARGV[2])
end
return redis.call('HMGET', JOB, 'ranges_id', 'ranges')
