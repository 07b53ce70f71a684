"""Raw gather and read-modify-write by known index: `native/bench/limits.cc`, compiled on demand.

D values a row, N rows in memory, M rows of a run.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import REPOSITORY

SOURCE = REPOSITORY / "native" / "bench" / "limits.cc"
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++20", "-shared", "-fPIC", "-pthread")
GATHER, ADD_CONSTANT, ADD_GRADIENT = 0, 1, 2
DISTANCES = (0, 4, 8, 12, 16, 24, 32, 48, 64)
"""Prefetch distances tried, in rows."""


def _library(folder: Path) -> ctypes.CDLL:
    """The compiled kernels, from `folder` when this source was compiled by this compiler before.

    Raises:
        RuntimeError: there is no C++ compiler, or it refused the file; the message holds what it said.
    """
    compiler = os.environ.get("CXX", "c++")
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as e:
        raise RuntimeError(f"the raw limits need a C++20 compiler and '{compiler}' does not run; set CXX") from e
    key = hashlib.sha256(SOURCE.read_bytes() + version.encode() + " ".join(FLAGS).encode()).hexdigest()[:16]
    path = folder / f"limits-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            built = Path(aside) / path.name
            done = subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(built)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise RuntimeError(f"{compiler} could not compile {SOURCE}:\n{done.stderr[-2000:]}")
            built.rename(path)
    library = ctypes.CDLL(str(path))
    library.limits_map.restype, library.limits_map.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.limits_unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    library.limits_run.argtypes = [number, pointer, size, size, pointer, size, size, pointer, size, size]
    return library


class RawTable:
    """N rows of D values side by side on huge pages, and a dense buffer of one batch. Close it to free the memory."""

    def __init__(self, rows: int, dim: int, dtype: type[np.generic], *, batch: int, folder: Path) -> None:
        self._library = _library(folder)
        self._bytes = rows * dim * np.dtype(dtype).itemsize
        self._memory: int | None = self._library.limits_map(self._bytes)
        if self._memory is None:
            raise MemoryError(f"no {self._bytes / 2**30:.1f} GiB for the raw table")
        buffer = (ctypes.c_char * self._bytes).from_address(self._memory)
        self.values: NDArray[Any] = np.frombuffer(buffer, dtype=dtype).reshape(rows, dim)
        """[N, D], writable."""
        self.dense: NDArray[np.float32] = np.zeros((batch, dim), np.float32)
        """[batch, D]: what a gather wrote for the last batch, and the gradients of an update."""

    def run(self, operation: int, rows: NDArray[np.int64], *, distance: int, threads: int) -> None:
        """GATHER, ADD_CONSTANT or ADD_GRADIENT over `rows` [M], batch after batch."""
        assert self._memory is not None
        assert rows.dtype == np.int64
        assert rows.flags.c_contiguous
        status = self._library.limits_run(
            *(operation, self._memory, self.values.shape[1], self.values.dtype.itemsize, rows.ctypes.data, rows.size),
            *(len(self.dense), self.dense.ctypes.data, distance, threads),
        )
        assert status == 0, f"the raw kernels have no operation {operation} at dim {self.values.shape[1]}"

    def best_distance(self, operation: int, rows: NDArray[np.int64], *, threads: int, tries: int = 3) -> int:
        """The prefetch distance that was fastest over `rows`, the best of some tries each."""

        def best_of(run: Callable[[], None]) -> float:
            seconds = []
            for _ in range(tries):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            return min(seconds)

        return min(DISTANCES, key=lambda d: best_of(lambda: self.run(operation, rows, distance=d, threads=threads)))

    def close(self) -> None:
        """Gives the memory back; `values` must not be touched after."""
        if self._memory is not None:
            self._library.limits_unmap(self._memory, self._bytes)
            self._memory = None
