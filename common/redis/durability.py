"""Durability of Redis: whether its settings, which are not hugqueue's own, let it lose jobs."""

import redis

from common.redis.url import mask_url


def durability_warnings(client: "redis.Redis", url: str) -> list[str]:
    """Return why Redis may lose jobs, each with the setting that prevents it; nothing if this user may not ask.

    Raises:
        redis.RedisError: Redis is unavailable.
    """
    try:
        info = client.info("persistence") | client.info("memory")
    except redis.exceptions.NoPermissionError:
        return []
    found = []
    if not int(info.get("aof_enabled", 1)):
        found.append(("keeps no append-only file, so a restart loses all jobs", "appendonly yes"))
    policy = info.get("maxmemory_policy", "noeviction")
    if int(info.get("maxmemory", 0)) and policy != "noeviction":
        found.append(
            (f"evicts data when its memory is full (maxmemory-policy {policy})", "maxmemory-policy noeviction")
        )
    masked = mask_url(url)
    return [
        f"Redis at {masked} {fault}. To change that, run `redis-cli -u {masked} config set {setting}` and put "
        f"`{setting}` into its redis.conf."
        for fault, setting in found
    ]
