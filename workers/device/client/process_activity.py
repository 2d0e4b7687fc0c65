"""Whether another process is getting on, as the kernel tells: what it has read and written, and the memory it fills."""

import contextlib
import os
from pathlib import Path

#: Bytes that count as getting on. What a process does to stay as it is (a log line, a message) is less.
_STEP = 1024 * 1024
_COUNTED = ("rchar", "wchar", "read_bytes")


class ProcessActivity:
    """Looks at one process again and again. Where there is no /proc it sees nothing happen."""

    def __init__(self, pid: int) -> None:
        self._directory = Path("/proc", str(pid))
        self._seen: dict[str, int] = {}

    def has_moved(self) -> bool:
        """Return whether the process has read, written or filled a noticeable amount since this last was true."""
        now = self._measure()
        moved = any(abs(now[name] - self._seen.get(name, 0)) >= _STEP for name in now)
        if moved or not self._seen:
            self._seen = now
        return moved

    def _measure(self) -> dict[str, int]:
        found = {}
        with contextlib.suppress(OSError, ValueError, IndexError):
            found["resident"] = int((self._directory / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for line in (self._directory / "io").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in _COUNTED:
                    found[name] = int(value)
        return found
