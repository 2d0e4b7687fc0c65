"""The queue in Redis: jobs, the ledger of chunks, output commit and heartbeats."""
