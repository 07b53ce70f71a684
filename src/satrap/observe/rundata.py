"""A run as its folder tells of it: the log and the resolved job, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.errors import TrainingError
from satrap.observe.profile import Profile, read_profile
from satrap.observe.runlog import read_metrics

Floats = NDArray[np.float64]
JOB_FILE = "job.yaml"


@dataclass(frozen=True, slots=True)
class RunData:
    """What a report knows of one run."""

    name: str
    """Unique among the runs of the report."""
    folder: Path
    records: list[dict[str, Any]]
    job_text: str
    job: dict[str, Any]
    """Dotted path → value, of everything the resolved job says."""

    def kind(self, kind: str) -> list[dict[str, Any]]:
        """The log's records of one kind."""
        return [r for r in self.records if r.get("kind") == kind]

    @property
    def start(self) -> dict[str, Any]:
        """The last `start` record."""
        return (self.kind("start") or [{}])[-1]

    @property
    def end(self) -> dict[str, Any]:
        """The `end` record; empty where the run has not ended."""
        return (self.kind("end") or [{}])[-1]

    @property
    def last(self) -> dict[str, Any]:
        """The last `train` record."""
        return (self.kind("train") or [{}])[-1]

    @property
    def profile(self) -> Profile | None:
        """Where its time went: with the servers, where there were some."""
        return read_profile((self.kind("profile") or [self.end])[-1])

    def curve(self, name: str) -> tuple[Floats, Floats]:
        """(samples, figure) of the `train` records."""
        pairs = [(r.get("samples"), r.get(name)) for r in self.kind("train")]
        return _columns([(x, y) for x, y in pairs if x is not None and y is not None])

    def evaluations(self, split: str, name: str) -> tuple[Floats, Floats]:
        """(samples, figure) of evaluations on one split, the mean over labels."""
        by_step: dict[int, list[float]] = {}
        for r in self.kind("eval"):
            if r.get("split") == split and r.get(name) is not None:
                by_step.setdefault(int(r["step"]), []).append(float(r[name]))
        batch = float(self.start.get("batch_size") or 1)
        known = {int(r["step"]): float(r["samples"]) for r in self.kind("train") if r.get("samples") is not None}
        total = {int(self.end["step"]): float(self.end["samples"])} if self.end.get("samples") is not None else {}
        known = {**known, **total}
        return _columns([(known.get(s, s * batch), sum(v) / len(v)) for s, v in sorted(by_step.items())])

    def final(self, split: str, name: str) -> float | None:
        """A figure of the model that stands for the run; None where there is none."""
        value = (self.end.get(split) or {}).get(name)
        if value is None:
            at = self.evaluations(split, name)[1]
            value = float(at[-1]) if len(at) and split == "valid" else None
        return value


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    if not pairs:
        return np.empty(0), np.empty(0)
    x, y = np.array(pairs, np.float64).T
    return x, y


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Reads run folders. Raises TrainingError for one that is none."""
    import yaml

    if not folders:
        raise TrainingError("a report needs at least one run folder")
    runs, taken = [], {f.name for f in folders if [g.name for g in folders].count(f.name) > 1}
    for folder in folders:
        try:
            job_text = (folder / JOB_FILE).read_text(encoding="utf-8")
            job = yaml.safe_load(job_text)
        except OSError as e:
            raise TrainingError(f"cannot read {folder / JOB_FILE}: {e.strerror}; is it the folder of a run?") from e
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise TrainingError(f"{folder / JOB_FILE} is not YAML: {e}") from e
        name = str(folder) if folder.name in taken or not folder.name else folder.name
        runs.append(RunData(name, folder, read_metrics(folder), job_text, dict(_flat(job, ""))))
    return runs


def _flat(tree: Any, where: str) -> list[tuple[str, Any]]:
    """Every leaf of a job by its path; items of lists by their name where they have one."""
    if isinstance(tree, Mapping) and tree:
        return [pair for k, v in tree.items() for pair in _flat(v, f"{where}.{k}" if where else str(k))]
    if isinstance(tree, list) and any(isinstance(x, Mapping) for x in tree):
        named = [
            (x.get("name") or x.get("column") or i if isinstance(x, Mapping) else i, x) for i, x in enumerate(tree)
        ]
        return [pair for k, v in named for pair in _flat(v, f"{where}.{k}")]
    return [(where, tree)]
