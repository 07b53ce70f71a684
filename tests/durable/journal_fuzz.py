"""Segments and manifests that nobody wrote: bits flipped, bytes cut, doubled, exchanged; and random ones.

    python tests/durable/journal_fuzz.py --inputs 1000000 --seed 1

A reader may do two things with a segment: raise JournalError, or hand out records that were written, from the first on
and without a gap. With a manifest: raise JournalError, or return the one that was written. And it takes no memory for
lengths that are not there.
"""

from __future__ import annotations

import argparse
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

from satrap.durable.files import LocalFiles
from satrap.durable.record import Kind, record_parts
from satrap.durable.segment import Identity, SegmentReader, segment_header
from satrap.durable.snapshot import FileEntry, Manifest, decode_manifest, encode_manifest
from satrap.errors import JournalError

ME = Identity(server=3, fingerprint=bytes(range(32)), life=0x1122334455667788)
FIRST = 41
_EDGES = [0, 1, 2, 3, 4, 5, 0x7F, 0x80, 0xFF]
CAP_BYTES = 1 << 18
"""More than any of these inputs needs, and far less than a length that a reader believes."""


class MemoryFiles(LocalFiles):
    """One file, in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def size(self, path: Path) -> int:
        return len(self._data)

    def open(self, path: Path) -> Any:
        import io

        return io.BytesIO(self._data)


def segment(records: int = 6) -> tuple[bytes, list[list[bytes]]]:
    rng = random.Random(9)
    payloads = [[rng.randbytes(rng.choice([0, 1, 7, 8, 40])) for _ in range(rng.randint(1, 4))] for _ in range(records)]
    parts = [segment_header(ME, FIRST)]
    for i, frames in enumerate(payloads):
        parts += [bytes(p) for p in record_parts(Kind.MESSAGE, FIRST + i, frames)]
    return b"".join(parts), payloads


SEGMENT_BYTES, PAYLOADS = segment()
MANIFEST = Manifest(
    format="satrap-snapshot", version=1, server=3, life="1122334455667788", fingerprint=bytes(range(32)).hex(),
    begin=7, end=9, partitions=2, tables=("a", "b"), positions=((7, 8), (9, 9)),
    files={n: FileEntry(bytes=9, crc32c="00000001") for n in ("begin.satrap", "end.satrap", "rows-00001.satrap")},
)  # fmt: skip
MANIFEST_BYTES = encode_manifest(MANIFEST)


def mutated(rng: random.Random, base: bytes) -> bytes:
    data = bytearray(base)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(8):
            case 0 | 1 | 2:
                if data:
                    data[at] ^= 1 << rng.randrange(8)
            case 3:
                if data:
                    data[at] = rng.choice(_EDGES)
            case 4:
                del data[at:]
            case 5:
                del data[at : at + rng.randrange(1, 60)]
            case 6:
                data[at:at] = rng.randbytes(rng.randrange(1, 60)) if rng.random() < 0.5 else data[: rng.randrange(80)]
            case 7:
                other = rng.randrange(len(data) + 1)
                n = rng.randrange(1, 50)
                data[at : at + n] = data[other : other + n]
    return bytes(data)


def try_segment(data: bytes) -> str:
    reader = SegmentReader(Path("memory"), FIRST, MemoryFiles(data))
    read: list[list[bytes]] = []
    try:
        for record in reader.records():
            read.append([bytes(f) for f in record.frames])
            assert record.sequence == FIRST + len(read) - 1
    except JournalError as e:
        outcome, said = "refused", str(e)
    else:
        outcome, said = "torn" if reader.torn else "whole", "memory"
        assert reader.identity in (ME, None)
    assert "memory" in said
    # What comes behind the last record written would need a checksum that fits.
    assert read == PAYLOADS[: len(read)], data.hex()
    return outcome


def try_manifest(data: bytes) -> str:
    try:
        found: Manifest | None = decode_manifest(data, "memory")
    except JournalError as e:
        found, said = None, str(e)
    else:
        said = "memory"
    assert "memory" in said
    assert found in (None, MANIFEST), data
    return "manifest refused" if found is None else "manifest read"


def fuzz(count: int, seed: int) -> Counter[str]:
    """Outcomes of that many."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    try_segment(SEGMENT_BYTES)
    try_manifest(MANIFEST_BYTES)
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    for _ in range(count):
        match rng.randrange(20):
            case 0:
                outcomes[try_segment(rng.randbytes(rng.randrange(300)))] += 1
            case 1 | 2 | 3:
                outcomes[try_manifest(mutated(rng, MANIFEST_BYTES))] += 1
            case _:
                outcomes[try_segment(mutated(rng, SEGMENT_BYTES))] += 1
    peak = tracemalloc.get_traced_memory()[1] - base
    tracemalloc.stop()
    assert peak < CAP_BYTES, peak
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(dict(fuzz(options.inputs, options.seed)))
