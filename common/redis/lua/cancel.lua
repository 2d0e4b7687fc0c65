-- Cancels a job; the holders of leased chunks drop them. Returns the status it has now.
local word = status()
if not unfinished(word) then return word or 'unknown' end
redis.call('DEL', TICKETS)
redis.call('HSET', JOB, 'status', 'cancelling')
if word == 'blocked' then finish('cancelled') else finish_if_done() end
return status()
