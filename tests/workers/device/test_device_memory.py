"""Memory of a batch is kept for the next one, and given back when a model goes."""

import json
import subprocess
import sys

import pytest

#: In a process of its own, for the C library's thresholds are the whole process's.
_SCRIPT = """
import json, psutil, resource, sys
from workers.device.server.memory import retain_freed_memory, release
size = 100 << 20
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def held():
    return psutil.Process().memory_info().rss
if sys.argv[1] == "kept":
    retain_freed_memory()
piece = b"x" * size
del piece
before, kept = faults(), held()
piece = b"x" * size
del piece
faulted = faults() - before
release()
print(json.dumps([faulted, kept - held()]))
"""


def again(way: str) -> tuple[int, int]:
    """Return how many pages a second piece of 100 MB needs anew, and the bytes that a release gives back."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT, way], check=True, capture_output=True, text=True)
    faulted, released = json.loads(done.stdout)
    return faulted, released


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's thresholds")
def test_freed_batch_memory_is_reused_and_released_with_the_model():
    assert again("by itself")[0] > 50  # huge pages may make them few
    faulted, released = again("kept")
    assert faulted < 50
    assert released > 90 << 20
