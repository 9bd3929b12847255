"""Which errors mean that memory was short, in the words of the libraries, and what a person reads of one."""

import pytest

from mezzotint.engine.stopwatch import is_memory, why

FULL = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("unable to mmap 5135149736 bytes from file </x>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a memory object"),
    RuntimeError("could not create a primitive"),
]
OTHERS = [ValueError("out of memory"), RuntimeError("could not create a primitive descriptor"), OSError("bad_alloc")]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_memory_that_was_short_is_known_by_its_words(error: Exception) -> None:
    assert is_memory(error)
    assert why(error) == "there is not enough memory for it"


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert not is_memory(error)


def test_what_a_library_says_is_told_in_one_line() -> None:
    assert why(RuntimeError("Exception from core.cpp:117:\n  Check 'ptr'\tfailed")) == (
        "RuntimeError: Exception from core.cpp:117: Check 'ptr' failed"
    )
