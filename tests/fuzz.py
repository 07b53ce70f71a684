"""Bytes that nobody wrote, for every reader: checkpoints, rows, tensors, exports, messages, journals, snapshots.

    python tests/fuzz.py --inputs 1000000 --seed 1
    python tests/fuzz.py --inputs 200000 --only rows --only manifest

An input is a valid file with a few things wrong, half of the time with its checksums made right again, so that what is
behind them is reached too. A reader may do two things with one: raise its own error, or return something that holds
together. And it takes no memory for lengths that are not there: one input in `MEMORY_EVERY` is measured, and the whole
process may not grow beyond a limit that the system holds it to.
"""

# ruff: noqa: E402, PT017
from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import random
import resource
import struct
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent / room) for room in ("wire", "durable", "checkpoint")]

import journal_fuzz
import msgspec
import numpy as np
import torch
import wire_fuzz
from journal_fuzz import mutated
from memory_rows import POSITION, dense_parts, job_of, random_block

from satrap.checkpoint import export, manifest, tensors
from satrap.checkpoint.export import Contents, ExportedFile, ExportedTable
from satrap.checkpoint.manifest import FileEntry, Manifest, TableEntry
from satrap.checkpoint.sealed import TRAILER_BYTES, seal
from satrap.durable import snapshot
from satrap.durable.record import RECORD
from satrap.durable.rows import RowReader, RowWriter, Source, checksum
from satrap.durable.segment import SEGMENT, SegmentReader
from satrap.errors import CheckpointError, JournalError
from satrap.schema import SGD, Adagrad, Adam, Table, ValueFormat, job_to_dict
from satrap.store import crc32c

MEMORY_EVERY = 64
CAP_BYTES = 1 << 19
"""More than any of these inputs needs (they have up to 10 kB), and far less than a length that a reader believes."""
PROCESS_BYTES = 2 << 30
"""What the process may map beyond what it has at the start."""

Outcome = str
Target = Callable[[random.Random], Outcome]

TABLES = [
    Table(name="a", dim=3, optimizer=Adagrad()),
    Table(name="bc", dim=5, optimizer=SGD()),
    Table(name="d", dim=2, format=ValueFormat.FP16, optimizer=Adam()),
]


def _manifest() -> Manifest:
    _, optimizer = dense_parts()
    entry = FileEntry(bytes=77, sha256="0" * 64, kind="dense")
    kinds: Any = ("dense", "optimizer", "rng")
    files = {manifest.file_name(k): msgspec.structs.replace(entry, kind=k) for k in kinds}
    files["rows-00002.satrap"] = msgspec.structs.replace(entry, kind="rows", partition=2)
    return Manifest(
        format=manifest.FORMAT, version=manifest.VERSION, satrap="1", created="2026-01-01T00:00:00+00:00", step=7,
        position=POSITION, clients={0: (1, 2)}, partitions=4,
        tables=tuple(TableEntry(spec=t, state_width=1, rows=3, bytes=50) for t in TABLES), files=files,
        job=job_to_dict(job_of(*TABLES)), optimizer=tensors.pack(optimizer.state_dict(), {}),
        rng=None, extra={"a": [1.5]},
    )  # fmt: skip


MANIFEST = _manifest()
MANIFEST_BYTES = manifest.encode(MANIFEST)
MANIFEST_BODY = MANIFEST_BYTES[:-TRAILER_BYTES]


def try_manifest(rng: random.Random) -> Outcome:
    """The manifest of a checkpoint."""
    resealed = rng.random() < 0.5
    if resealed:
        body = mutated(rng, MANIFEST_BODY)
        data = body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()
    else:
        data = mutated(rng, MANIFEST_BYTES)
    try:
        found = manifest.decode(data, "memory")
    except CheckpointError as e:
        assert "memory" in str(e)
        return "refused"
    assert resealed or found == MANIFEST, data
    # What passes can be written and read again, and names no file outside its folder.
    assert manifest.decode(manifest.encode(found), "memory") == found, data
    assert not any("/" in name or ".." in name for name in found.files), data
    return "read"


SNAPSHOT_BODY = journal_fuzz.MANIFEST_BYTES[: -snapshot._TRAILER_BYTES]


def try_snapshot(rng: random.Random) -> Outcome:
    """The manifest of a snapshot, with a checksum that fits."""
    body = mutated(rng, SNAPSHOT_BODY)
    data = body + f',\n  "crc32c": "{crc32c([body]):08x}"\n}}\n'.encode()
    try:
        found = snapshot.decode_manifest(data, "memory")
    except JournalError as e:
        assert "memory" in str(e)
        return "refused"
    assert snapshot.decode_manifest(snapshot.encode_manifest(found), "memory") == found, data
    return "read"


def _rows_file(block_bytes: int = 64) -> bytes:
    out = bytearray()
    writer = RowWriter(out.extend, partition=3, partitions=4, block_bytes=block_bytes)
    for i, table in enumerate(TABLES):
        writer.add(table, random_block(table, 12, i))
    writer.close()
    return bytes(out)


ROWS = _rows_file()
_STARTS = [0]
while (_found := min((x for x in (ROWS.find(b"SATRTABL", _STARTS[-1] + 1), ROWS.find(b"SATRDONE", _STARTS[-1] + 1))
                      if x > 0), default=0)):  # fmt: skip
    _STARTS.append(_found)
_SIZES = [64, *(128 for _ in TABLES), 64]


def try_rows(rng: random.Random) -> Outcome:
    """A row file; half of the time one field of a header is changed and its checksum fits."""
    resealed = rng.random() < 0.5
    if resealed:
        data = bytearray(ROWS)
        for _ in range(rng.choice([1, 1, 2])):
            i = rng.randrange(len(_STARTS))
            at = _STARTS[i]
            size = rng.choice([1, 2, 4, 8])
            to = at + rng.randrange(0, 56 - size + 1)
            data[to : to + size] = (rng.choice(wire_fuzz._EDGES) & (1 << 8 * size) - 1).to_bytes(size, "little")
            data[at + 56 : at + 64] = bytes(8)
            data[at + 56 : at + 64] = struct.pack("<Q", checksum(bytes(data[at : at + _SIZES[i]]), at))
        data = bytes(data)
    else:
        data = mutated(rng, ROWS)
    size = 0
    try:
        reader = RowReader(Source(io.BytesIO(data), "memory", len(data)))
        for _, block in reader.sections():
            assert block is not None
            size += block.ids.nbytes + block.values.nbytes + block.state.nbytes
    except CheckpointError as e:
        assert "memory" in str(e)
        return "refused"
    assert size <= len(data)
    assert resealed or data == ROWS, data.hex()
    return "read"


def _trees() -> tuple[bytes, bytes]:
    _, optimizer = dense_parts()
    kept: dict[str, torch.Tensor] = {}
    tree = tensors.pack({"o": optimizer.state_dict(), "t": (1, 2.5, float("nan"), 2**70), 3: torch.arange(5)}, kept)
    return msgspec.json.encode(tree), tensors.encode(kept, "state")


TREE, TENSORS = _trees()
KEPT = tensors.decode(TENSORS, "memory")


def try_tensors(rng: random.Random) -> Outcome:
    """A safetensors file, and the tree that refers to its tensors."""
    try:
        if rng.random() < 0.5:
            found = tensors.decode(mutated(rng, TENSORS), "memory")
            assert sum(t.nbytes for t in found.values()) <= len(TENSORS) + 256
        else:
            try:
                tree = msgspec.json.decode(mutated(rng, TREE))
            except (msgspec.DecodeError, UnicodeDecodeError):
                return "no JSON"
            tensors.unpack(tree, KEPT, "memory")
    except CheckpointError as e:
        assert "memory" in str(e)
        return "refused"
    return "read"


def try_wire(rng: random.Random) -> Outcome:
    """A message."""
    frames = wire_fuzz.mutated(rng) if rng.random() < 0.8 else wire_fuzz.random_frames(rng)
    return "read" if wire_fuzz.check(frames) else "refused"


def try_journal(rng: random.Random) -> Outcome:
    """A segment of a journal, or the manifest of a snapshot, as they come."""
    match rng.randrange(8):
        case 0:
            return journal_fuzz.try_segment(rng.randbytes(rng.randrange(300)))
        case 1 | 2:
            return journal_fuzz.try_manifest(mutated(rng, journal_fuzz.MANIFEST_BYTES))
        case _:
            return journal_fuzz.try_segment(mutated(rng, journal_fuzz.SEGMENT_BYTES))


def _record_offsets() -> list[int]:
    reader = SegmentReader(Path("memory"), journal_fuzz.FIRST, journal_fuzz.MemoryFiles(journal_fuzz.SEGMENT_BYTES))
    return [r.offset for r in reader.records()]


_RECORDS = _record_offsets()


def try_records(rng: random.Random) -> Outcome:
    """A segment whose headers say something else, with checksums that fit."""
    data = bytearray(journal_fuzz.SEGMENT_BYTES)
    for _ in range(rng.choice([1, 1, 2])):
        at, head = rng.choice([(0, SEGMENT.size), *((r, RECORD.size) for r in _RECORDS)])
        size = rng.choice([1, 2, 4, 8])
        to = at + rng.randrange(0, head - 4 - size + 1)
        data[to : to + size] = (rng.choice(wire_fuzz._EDGES) & (1 << 8 * size) - 1).to_bytes(size, "little")
        data[at + head - 4 : at + head] = struct.pack("<I", crc32c([memoryview(data)[at : at + head - 4]]))
    reader = SegmentReader(Path("memory"), journal_fuzz.FIRST, journal_fuzz.MemoryFiles(bytes(data)))
    size = 0
    try:
        for record in reader.records():
            size += sum(len(f) for f in record.frames)
    except JournalError as e:
        assert "memory" in str(e)
        return "refused"
    assert size <= len(data)
    return "torn" if reader.torn else "read"


def _export() -> bytes:
    file = ExportedFile(partition=1, rows=3, bytes=99, sha256="0" * 64)
    tables = tuple(ExportedTable(spec=t, state_width=1, rows=3, files=(file,)) for t in TABLES)
    contents = Contents(
        format=export.FORMAT, version=export.VERSION, satrap="1", created="now", step=3, form="parquet",
        tables=tables, dense_bytes=9, dense_sha256="0" * 64,
    )  # fmt: skip
    return seal(msgspec.to_builtins(contents))


EXPORT_BODY = _export()[:-TRAILER_BYTES]


def try_export(rng: random.Random) -> Outcome:
    """`export.json`, with a seal that fits."""
    body = mutated(rng, EXPORT_BODY)
    data = body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()
    try:
        found = export.decode_contents(data, "memory")
    except CheckpointError as e:
        assert "memory" in str(e)
        return "refused"
    assert export.decode_contents(seal(msgspec.to_builtins(found)), "memory") == found, data
    assert not any({"/", ".."} & set(export.file_of(t.spec.name, 1, "parquet")) for t in found.tables), data
    return "read"


TARGETS: dict[str, Target] = {
    "export": try_export,
    "manifest": try_manifest,
    "rows": try_rows,
    "tensors": try_tensors,
    "wire": try_wire,
    "journal": try_journal,
    "records": try_records,
    "snapshot": try_snapshot,
}


def fuzz(target: str, count: int, seed: int) -> Counter[Outcome]:
    """Outcomes of that many inputs. Raises what a reader should not."""
    attempt, outcomes, rng = TARGETS[target], Counter[Outcome](), random.Random(seed)
    attempt(random.Random(seed))  # what is loaded at first use is not the input's
    for i in range(count):
        if i % MEMORY_EVERY == 0:  # so that what follows depends on nothing that came before
            rng = random.Random(f"{target} {seed} {i}")
        try:
            if i % MEMORY_EVERY:
                outcomes[attempt(rng)] += 1
                continue
            tracemalloc.start()
            try:
                outcomes[attempt(rng)] += 1
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak <= CAP_BYTES, f"it took {peak:,} bytes"
        except Exception as e:
            again = f"--only {target} --seed {seed} --inputs {i // MEMORY_EVERY * MEMORY_EVERY + MEMORY_EVERY}"
            e.add_note(f"input {i} of {target}; again with: {again}")
            raise
    return outcomes


@contextlib.contextmanager
def capped(more_bytes: int = PROCESS_BYTES) -> Any:
    """While it is entered, the system refuses this process more address space than this beyond what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(TARGETS), help="repeatable")
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    names = options.only or list(TARGETS)
    with capped():
        for i, name in enumerate(names):
            count = options.inputs * (i + 1) // len(names) - options.inputs * i // len(names)
            start = time.perf_counter()
            outcomes = fuzz(name, count, options.seed)
            seconds = time.perf_counter() - start
            told = ", ".join(f"{n:,} {what}" for what, n in sorted(outcomes.items()))
            print(f"{name:9} seed {options.seed}: {count:,} inputs in {seconds:.0f} s: {told}", flush=True)


if __name__ == "__main__":
    main()
