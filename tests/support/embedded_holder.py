"""A command that needs the embedded Redis, for tests: says when it has it, then waits until its input ends."""

import json
import sys

from common.settings import load_settings
from producer.embedded.attach import attach

said: list[str] = []
with attach(load_settings(), with_worker="with_worker" in sys.argv, notify=said.append) as settings:
    sys.stdout.write(json.dumps({"url": settings.broker_url, "said": said}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
