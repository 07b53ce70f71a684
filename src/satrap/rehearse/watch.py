"""What the log of a run says while it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from satrap.observe.runlog import METRICS_FILE


class Watch:
    """Reads the records of a run as they come. Not thread-safe."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._at = 0
        self.records: list[dict[str, Any]] = []
        """All so far, those of steps that were taken back too."""

    def look(self) -> None:
        """Takes in what has come."""
        try:
            with self._path.open("rb") as f:
                f.seek(self._at)
                data = f.read()
        except FileNotFoundError:
            return
        whole = data.rpartition(b"\n")[0]
        self._at += len(whole) + 1 if whole else 0
        self.records += [msgspec.json.decode(line) for line in whole.splitlines() if line]

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return next((r["step"] for r in reversed(self.records) if r["kind"] == "train"), 0)

    @property
    def began_at(self) -> float | None:
        """When the first step was logged, in seconds since 1970."""
        return next((r["time"] for r in self.records if r["kind"] == "train"), None)

    @property
    def end(self) -> dict[str, Any] | None:
        """The record of its end."""
        return next((r for r in reversed(self.records) if r["kind"] == "end"), None)

    def back(self, lost_at: float) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """After a machine was lost: the record by which the run went on, and that of the first step after it. None: it
        has not gone on yet.

        A server came back in place (`revived`), or the group began again (`start`).
        """
        after = [r for r in self.records if r["time"] >= lost_at]
        mark = next((i for i, r in enumerate(after) if r["kind"] in ("revived", "start")), None)
        if mark is None:
            return None
        first = next((r for r in after[mark + 1 :] if r["kind"] == "train"), None)
        return None if first is None else (after[mark], first)
