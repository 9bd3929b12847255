"""What `environment` has a worker's allocator do. Only glibc is told, from 2.35 on, on a system with large pages."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mezzotint.workers.local import environment

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
GLIBC, VERSION = platform.libc_ver()
SIZE = 128 << 20
USE = f"""
import torch
piece = torch.zeros({SIZE}, dtype=torch.uint8)
(line,) = [line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
print(int(line.split()[1]) << 10)
"""


@pytest.mark.skipif(
    GLIBC != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 35), reason="this C library has no such setting"
)
@pytest.mark.skipif(not PAGES.exists() or "[never]" in PAGES.read_text(), reason="this system has no large pages")
def test_large_pieces_come_in_large_pages() -> None:
    """A step of a full-size model takes and frees some of 100 MB at every layer, and each page of it is faulted in."""
    told = subprocess.run([sys.executable, "-c", USE], env=environment(), check=True, capture_output=True, text=True)
    assert int(told.stdout) > SIZE / 2
