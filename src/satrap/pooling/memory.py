"""Memory of vectors."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

LINE_BYTES = 64


def vectors(*shape: int) -> NDArray[np.float32]:
    """An array of any content that begins on a cache line, as torch's own do: the bits of some of its kernels depend
    on where their input begins."""
    raw = np.empty(prod(shape) + LINE_BYTES // 4, np.float32)
    skip = -(raw.ctypes.data // 4) % (LINE_BYTES // 4)
    return raw[skip : skip + prod(shape)].reshape(shape)
