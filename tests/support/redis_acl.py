"""The users of Redis that docs/security.md describes."""

import re

import redis

from tests.support.processes import ROOT

PASSWORD = "s3cret-of-a-test"


def rules() -> dict[str, list[str]]:
    """Return the rules of each user, by the last word of its name: producer, worker, flower."""
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    lines = re.findall(r"^user hugqueue-(\w+) (.*)$", text, re.MULTILINE)
    return {role: rule.replace(">PASSWORD", f">{PASSWORD}").split() for role, rule in lines}


def add_users(client: "redis.Redis") -> None:
    """Make the users; CLIENT SETINFO is left out where the server does not know it, as the docs say."""
    version = tuple(map(int, client.info("server")["redis_version"].split(".")[:2]))
    for role, rule in rules().items():
        words = [word for word in rule if version >= (7, 2) or word != "+client|setinfo"]
        client.execute_command("ACL", "SETUSER", role, *words)


def denied(client: "redis.Redis") -> list[str]:
    """Return what was refused so far, in words."""
    return [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in client.acl_log()]
