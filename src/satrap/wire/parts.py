"""What a message is made of, before it is frames."""

from __future__ import annotations

from typing import Any, NamedTuple

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
