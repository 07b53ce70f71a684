"""How large a message may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a receiver takes. Compared with what a message claims before anything is allocated or looked at.

    A socket allocates a frame before `decode` sees it: give `frame_bytes` to the socket as well (ZMQ_MAXMSGSIZE), and
    stop reading a message after `wire.FRAMES_MAX` frames.
    """

    frame_bytes: int = 1 << 30
    """Of one frame. Lower it where clients are not trusted; raise it where a partition's page is larger."""
    body_bytes: int = 4 << 20
    """Of the body in the first frame: names, texts, counts."""
    text_bytes: int = 1 << 20
    """Of one text: a failure, metrics, a configuration."""
    tables: int = 4096
    """In the directory of one message."""
    rows: int = 1 << 24
    """Of all tables of one message together."""
    dim: int = 4096
    """D: values a row."""
    state_width: int = 16384
    """K: words of optimizer state a row."""
    clients: int = 65536
    """In a list of clients."""


DEFAULT = Limits()
