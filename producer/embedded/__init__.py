"""An embedded Redis and worker, used if no Redis is configured; the entry point is `attach`."""
