"""Files that only grow: opened, repaired after a crash, appended to in whole records."""

from __future__ import annotations

import io
import os
from pathlib import Path

from satrap.errors import TrainingError


def open_for_append(path: Path) -> io.FileIO:
    """Opens unbuffered, made if missing. Raises TrainingError naming the file where that cannot be."""
    try:
        return open(path, "ab", buffering=0)
    except OSError as e:
        raise TrainingError(f"cannot write {path}: {e.strerror}; give a folder you may write to (--run-dir)") from e


def append(file: io.FileIO, path: Path, record: bytes) -> None:
    """Writes one record, whole unless the disk fills up or the process dies. Raises TrainingError for the former."""
    try:
        left = memoryview(record)
        while left:
            left = left[file.write(left) or 0 :]
    except OSError as e:
        raise TrainingError(f"cannot write {path}: {e.strerror}; make room, then go on with --resume") from e


def cut_partial_line(path: Path) -> int:
    """Removes what follows the last newline, the half of a line that a killed process left. Returns bytes removed.

    >>> import tempfile
    >>> p = Path(tempfile.mkdtemp()) / "a.jsonl"
    >>> _ = p.write_text('{"a": 1}\\n{"b"')
    >>> cut_partial_line(p), p.read_text()
    (4, '{"a": 1}\\n')
    """
    step_bytes = 1 << 16
    with open(path, "r+b") as file:
        end = at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - step_bytes)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at < end:
            file.truncate(at)
        return end - at
