"""A Redis and a worker of one's own, for when none is configured: `attach` is what commands use."""
