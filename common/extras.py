"""The optional parts of the distribution (`pyproject.toml`), and how a message says that one is wanted."""


def install(extra: str) -> str:
    """Return the command that adds an extra: `embedded`, `monitor`, `worker` or what else there is."""
    return f"pip install 'hugqueue[{extra}]'"
