"""Keys that one process holds at a time, under its name and with a time to live: a GPU, the turn to reap."""

import redis


def hold(client: "redis.Redis", key: str, owner: str, ms: int) -> bool:
    """Take the key for so many milliseconds from now, or keep it; return whether it is `owner`'s."""
    if client.set(key, owner, nx=True, px=ms):
        return True
    if client.get(key) != owner.encode():
        return False
    client.pexpire(key, ms)
    return True


def let_go(client: "redis.Redis", key: str, owner: str) -> None:
    """Give the key back, if it is `owner`'s."""
    if client.get(key) == owner.encode():
        client.delete(key)
