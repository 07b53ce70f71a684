"""What training asks of Python's and the C library's memory, and that it is put back."""

from __future__ import annotations

import gc
import resource
import sys

import pytest
import torch

from satrap.train.memory import garbage_of_the_loop_only, keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_buffer_that_is_freed_and_asked_for_again_costs_no_page_faults() -> None:
    if not keep_freed_memory():
        pytest.skip("another C library")

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.zeros(2 << 20)  # 8 MiB, 2,048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 2048


def test_what_was_there_before_is_left_out_of_collections_until_the_end() -> None:
    frozen = gc.get_freeze_count()
    with garbage_of_the_loop_only():
        assert gc.get_freeze_count() > frozen
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_an_error_inside_puts_collections_back_as_well() -> None:
    with pytest.raises(RuntimeError), garbage_of_the_loop_only():
        raise RuntimeError
    assert gc.get_freeze_count() == 0
