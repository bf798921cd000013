"""The allocator of a CPU run keeps what a step frees; seen in a process of its own, for it is for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from pathlib import Path
from hicmae.train.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "kept" else True
block = bytearray(b"x") * 2**27
del block
resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
print(kept, int(resident.split()[1]) * 1024 > 2**27)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("what", ["given back", "kept"])
def test_freed_memory_stays_with_the_process(what: str) -> None:
    ended = subprocess.run([sys.executable, "-c", CODE, what], capture_output=True, text=True, check=True)
    allowed, still_there = (word == "True" for word in ended.stdout.split())
    if not allowed:
        pytest.skip("the C library is not glibc")
    assert still_there == (what == "kept")
