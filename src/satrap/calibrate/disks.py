"""Sequential writing and reading of a large file, past the page cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from satrap.plan.constants import DiskCost

BYTES, PIECE = 512 << 20, 8 << 20


def disk_cost(folder: Path, *, size: int = BYTES) -> DiskCost:
    """Measures the disk that a folder is on; needs `size` bytes of room for a moment."""
    piece = np.random.default_rng(1).integers(0, 256, min(PIECE, size), np.uint8).tobytes()
    pieces = max(1, size // len(piece))
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".satrap-disk-") as file:
        descriptor = file.fileno()
        start = perf_counter()
        for _ in range(pieces):
            os.write(descriptor, piece)
        os.fsync(descriptor)
        write_s = perf_counter() - start
        if hasattr(os, "posix_fadvise"):  # elsewhere the file is read from memory, and the figure says so by its size
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(descriptor, 0, os.SEEK_SET)
        start = perf_counter()
        while os.read(descriptor, len(piece)):
            pass
        read_s = perf_counter() - start
    gib = pieces * len(piece) / 2**30
    return DiskCost(read_gib_s=gib / read_s, write_gib_s=gib / write_s)
