"""Locks in Redis: keys with a time to live that one owner holds at a time, such as a GPU's or the reaper's."""

import redis

_ACQUIRE = """
local owner = redis.call('get', KEYS[1])
-- No owner holds it for so much longer than others: if it seems so, the clock was set back, and the owner may be dead.
if owner and owner ~= ARGV[1] and redis.call('pttl', KEYS[1]) <= 10 * ARGV[2] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end"


def acquire_lock(client: "redis.Redis", key: str, owner: str, ms: int) -> bool:
    """Acquire or extend a lock for `ms` milliseconds from now; return whether `owner` has it."""
    return bool(client.register_script(_ACQUIRE)(keys=[key], args=[owner, ms]))


def has_lock(client: "redis.Redis", key: str, owner: str) -> bool:
    """Whether `owner` has a lock."""
    return bool(client.get(key) == owner.encode())


def release_lock(client: "redis.Redis", key: str, owner: str) -> None:
    """Release a lock if `owner` has it."""
    client.register_script(_RELEASE)(keys=[key], args=[owner])
