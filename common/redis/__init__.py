"""Redis as this project uses it: how it is reached, its keys, and the scripts that it runs."""
