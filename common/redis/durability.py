"""Whether Redis keeps what it is told: what hugqueue promises depends on settings of a server that is not its own."""

import redis

from common.redis.url import mask_url


def durability_warnings(client: "redis.Redis", url: str) -> list[str]:
    """Return why Redis may lose jobs, a sentence each with what mends it; none where this user may not ask.

    Raises:
        redis.RedisError: Redis is away.
    """
    try:
        facts = client.info("persistence") | client.info("memory")
    except redis.exceptions.NoPermissionError:
        return []
    found = []
    if not int(facts.get("aof_enabled", 1)):
        found.append(_advice(url, "keeps no append-only file: a restart of it forgets all jobs", "appendonly yes"))
    policy = facts.get("maxmemory_policy", "noeviction")
    if int(facts.get("maxmemory", 0)) and policy != "noeviction":
        fault = f"throws data away when its memory is full (maxmemory-policy {policy})"
        found.append(_advice(url, fault, "maxmemory-policy noeviction"))
    return found


def _advice(url: str, fault: str, setting: str) -> str:
    address = mask_url(url)
    return (
        f"Redis at {address} {fault}. To change that, run `redis-cli -u {address} config set {setting}` and put "
        f"`{setting}` into its redis.conf."
    )
