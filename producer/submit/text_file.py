"""Short texts from files: what `@FILE` names as the value of an option or a parameter."""

from pathlib import Path

from common.errors import UsageError, path_errors

#: Bytes of a file: more than any such text may have.
_MAX_BYTES = 1024**2


def read_text(name: str, option: str) -> str:
    """Return the text of a file in UTF-8, without the line end after its last line.

    Args:
        name: of the file.
        option: that names it, for messages.

    Raises:
        UsageError: It cannot be read, is too large, or is not UTF-8.
    """
    with path_errors(f"{option} @{name}"), Path(name).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{option} @{name}: the file has more than {_MAX_BYTES:,} bytes; expected a short text.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{option} @{name} line {line}: byte 0x{data[error.start]:02x} is not UTF-8.") from error
    return text.replace("\r\n", "\n").removesuffix("\n")
