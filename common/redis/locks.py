"""Keys that one process holds at a time, under its name and with a time to live: a GPU, the turn to reap."""

import redis

_HOLD = """
local owner = redis.call('get', KEYS[1])
-- Nobody holds it for so much longer than others: where it seems so, the clock was set back, and its owner may be dead.
if owner and owner ~= ARGV[1] and redis.call('pttl', KEYS[1]) <= 10 * ARGV[2] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1
"""
_LET_GO = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end"


def acquire_lock(client: "redis.Redis", key: str, owner: str, ms: int) -> bool:
    """Take the key for so many milliseconds from now, or keep it; return whether it is `owner`'s."""
    return bool(client.register_script(_HOLD)(keys=[key], args=[owner, ms]))


def release_lock(client: "redis.Redis", key: str, owner: str) -> None:
    """Give the key back, if it is `owner`'s."""
    client.register_script(_LET_GO)(keys=[key], args=[owner])
