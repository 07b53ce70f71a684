"""Checksums of what is written to disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from satrap.store import _native

if TYPE_CHECKING:
    from typing_extensions import Buffer


def crc32c(parts: Sequence[Buffer], crc: int = 0) -> int:
    """CRC32C (RFC 3720) of contiguous bytes one behind the other, after those that `crc` is of. Thread-safe; long sums
    release the GIL.

    >>> hex(crc32c([b"1234", b"56789"]))
    '0xe3069283'
    """
    return _native.crc32c(parts, crc)
