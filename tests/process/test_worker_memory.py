"""What `environment` has a worker's allocator do. Only glibc is told, from 2.35 on, on a system with large pages."""

import platform
import re
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
PACK = """
import threading
import torch
from mezzotint.families.packing import pack

def huge():
    (line,) = [line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
    return int(line.split()[1]) << 10

def load():
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(64)))
    before = huge()
    print(pack(model), huge() - before)

loader = threading.Thread(target=load)
loader.start()
loader.join()
"""
KERNEL = tuple(map(int, re.findall("[0-9]+", platform.release())[:2]))


@pytest.mark.skipif(
    GLIBC != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 35), reason="this C library has no such setting"
)
@pytest.mark.skipif(not PAGES.exists() or "[never]" in PAGES.read_text(), reason="this system has no large pages")
def test_large_pieces_come_in_large_pages() -> None:
    """A step of a full-size model takes and frees some of 100 MB at every layer, and each page of it is faulted in."""
    told = subprocess.run([sys.executable, "-c", USE], env=environment(), check=True, capture_output=True, text=True)
    assert int(told.stdout) > SIZE / 2


@pytest.mark.skipif(sys.platform != "linux" or KERNEL < (6, 1), reason="this system cannot be asked for it")
@pytest.mark.skipif(not PAGES.exists() or "[never]" in PAGES.read_text(), reason="this system has no large pages")
def test_weights_that_another_thread_packed_lie_in_large_pages() -> None:
    """Models are loaded beside the steps of others, in a heap that glibc lays out in small pages."""
    told = subprocess.run([sys.executable, "-c", PACK], env=environment(), check=True, capture_output=True, text=True)
    packed, in_large_pages = map(int, told.stdout.split())
    assert packed == 64 << 20
    assert in_large_pages > packed / 2
