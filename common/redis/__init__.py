"""Redis: the client, keys, locks and Lua scripts."""
