"""Which errors mean that memory was short, in the words of the libraries, and what a person reads of one."""

import pytest
import torch

from mezzotint.engine.stopwatch import is_device, is_memory, why

FULL = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("unable to mmap 5135149736 bytes from file </x>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("posix_memalign failed:Cannot allocate memory (12)"),
    RuntimeError("posix_memalign failed:Success (0)"),
    RuntimeError("could not create a memory object"),
    RuntimeError("could not create a primitive"),
]
OTHERS = [ValueError("out of memory"), RuntimeError("could not create a primitive descriptor"), OSError("bad_alloc")]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_memory_that_was_short_is_known_by_its_words(error: Exception) -> None:
    assert is_memory(error)
    assert why(error) == "there is not enough memory for it"


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_an_error_that_only_looks_like_it_is_not_taken_for_short_memory(error: Exception) -> None:
    assert not is_memory(error)


def test_what_a_library_says_is_told_in_one_line() -> None:
    assert why(RuntimeError("Exception from core.cpp:117:\n  Check 'ptr'\tfailed")) == (
        "RuntimeError: Exception from core.cpp:117: Check 'ptr' failed"
    )


@pytest.mark.parametrize(
    ("error", "is_broken"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (torch.AcceleratorError("unspecified launch failure"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_a_device_that_failed_is_told_from_what_one_session_did(error: Exception, is_broken: bool) -> None:
    assert is_device(error) is is_broken
