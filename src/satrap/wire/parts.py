"""What a message is made of, before it is frames."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satrap.errors import WireError
from satrap.wire.body import Opened
from satrap.wire.messages import Section


class Parts(NamedTuple):
    """All of a message but its header."""

    flags: int = 0
    sections: tuple[Section, ...] = ()
    body: bytes = b""
    frames: tuple[memoryview, ...] = ()


def carried(o: Opened) -> dict[str, Any]:
    """The fields that every message has."""
    return {"request": o.head.request, "placement": o.head.placement, "life": o.head.life}


def frame_of(where: str, what: str, array: NDArray[Any], dtype: Any, size: int) -> memoryview:
    """An array as a frame, without a copy."""
    if array.dtype != dtype or array.size != size or not array.flags.c_contiguous:
        raise WireError(
            f"{where}: {what} must be a contiguous {np.dtype(dtype).name} array of {size}, "
            f"got {array.dtype} of {array.size}"
        )
    return array.reshape(-1).view(np.uint8).data
