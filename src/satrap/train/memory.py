"""What Python does about memory, told that a training step makes the same again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from satrap.store import keep_freed_memory

__all__ = ["garbage_of_the_loop_only", "keep_freed_memory"]


@contextmanager
def garbage_of_the_loop_only() -> Iterator[None]:
    """Leaves what exists now (modules, mostly: some hundred thousand objects) out of garbage collections until the end.

    Every full collection would walk through all of it, several times a second. What is made inside is collected as
    ever.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
