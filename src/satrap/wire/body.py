"""Reading a body field by field, and the pieces that bodies are made of."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from satrap.errors import WireError
from satrap.wire.layout import Head, over, pack
from satrap.wire.limits import Limits
from satrap.wire.messages import Name, Section

COUNT = struct.Struct("<I")
CLIENT = struct.Struct("<QQQ")


@dataclass(slots=True)
class Opened:
    """A message whose header and directory are checked; its body is read from `at` on."""

    head: Head
    sections: tuple[Section, ...]
    first: memoryview
    frames: list[memoryview]
    """Those behind the first."""
    limits: Limits
    at: int

    @property
    def where(self) -> str:
        """For messages of errors."""
        return self.head.kind.name

    def flag(self, bit: int) -> bool:
        """A flag of the header."""
        return bool(self.head.flags & bit)

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next fields."""
        self.need(layout.size)
        values = layout.unpack_from(self.first, self.at)
        self.at += layout.size
        return values

    def need(self, size: int) -> None:
        """Raises WireError when the body ends before that many bytes."""
        left = self.first.nbytes - self.at
        if size > left:
            raise WireError(f"{self.where}: {size} bytes expected at offset {self.at}, the body has {left} left")

    def count(self, what: str, limit: int, size: int) -> int:
        """A number of things of `size` bytes each, which must all be there."""
        (n,) = self.take(COUNT)
        if n > limit:
            raise over(self.where, what, n, limit)
        self.need(n * size)
        return int(n)

    def text(self) -> str:
        """A length and that many bytes of UTF-8."""
        size = self.count("bytes of text", self.limits.text_bytes, 1)
        raw = bytes(self.first[self.at : self.at + size])
        self.at += size
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise WireError(f"{self.where}: the text at offset {self.at - size} is not UTF-8: {e.reason}") from e

    def clients(self) -> dict[int, Name]:
        """A list of clients, ascending."""
        out: dict[int, Name] = {}
        last = -1
        for _ in range(self.count("clients", self.limits.clients, CLIENT.size)):
            client, epoch, seq = self.take(CLIENT)
            if client <= last:
                raise WireError(f"{self.where}: client {client} comes after client {last}; clients ascend")
            out[client] = (epoch, seq)
            last = client
        return out

    def end(self) -> None:
        """Raises WireError unless the body was read to its end."""
        if self.at != self.first.nbytes:
            raise WireError(f"{self.where}: {self.first.nbytes - self.at} bytes behind the end of the body")


def text_bytes(text: str, where: str) -> bytes:
    """What `Opened.text` reads."""
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise WireError(f"{where}: a text that is not Unicode: {e.reason}") from e
    return pack(COUNT, where, len(raw)) + raw


def clients_bytes(clients: Mapping[int, Name], where: str) -> bytes:
    """What `Opened.clients` reads."""
    parts = [pack(CLIENT, where, client, *clients[client]) for client in sorted(clients)]
    return pack(COUNT, where, len(parts)) + b"".join(parts)
