"""From the words of a command line to a job: job file or data files, overrides, run folders, checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from satrap.cli.failures import UsageError
from satrap.errors import CheckpointError, JobError, did_you_mean
from satrap.schema import Job, job_to_dict

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w -]+)*=")

_PATH = re.compile(r"/|\.(parquet|pq|csv|tsv)(\.\w+)?$")

RESUMABLE = {
    "train.epochs": "how long it trains",
    "train.max_steps": "how long it trains",
    "train.log_every_steps": "what is logged",
    "train.eval_every_steps": "when it is evaluated",
    "train.early_stopping": "when it stops",
    "train.checkpoint": "when checkpoints are saved",
    "train.device": "where it runs",
    "train.threads": "where it runs",
    "store.threads": "where it runs",
    "data.test": "what the finished model is tested on",
}
"""Settings a resumed run may change, because they do not change the model that the steps so far have made."""


@dataclass(frozen=True)
class Words:
    """The positional words of `satrap train`, sorted."""

    job_file: Path | None
    data: list[str]
    overrides: list[str]


def sort_words(words: Iterable[str]) -> Words:
    """Tells a job file from data files from overrides.

    A word that names an existing file is never an override, nor is a path like `day=1/a.parquet`.

    >>> sort_words(["job.yaml", "train.staleness=0"])
    Words(job_file=PosixPath('job.yaml'), data=[], overrides=['train.staleness=0'])
    >>> sort_words(["logs/day=1/a.parquet", "seed=3"]).data
    ['logs/day=1/a.parquet']
    """
    files: list[str] = []
    overrides: list[str] = []
    for word in words:
        (overrides if _is_override(word) else files).append(word)
    jobs = [f for f in files if f.endswith((".yaml", ".yml"))]
    if len(jobs) > 1:
        raise UsageError(f"give one job file, not {len(jobs)}: {', '.join(jobs)}")
    if jobs and len(files) > 1:
        others = ", ".join(f for f in files if f not in jobs)
        raise UsageError(
            f"{jobs[0]} is a job file and names its own data, so {others} has no place; "
            f"write data.train=[{others}] to train it on other files"
        )
    return Words(job_file=Path(jobs[0]) if jobs else None, data=[] if jobs else files, overrides=overrides)


def _is_override(word: str) -> bool:
    match = _OVERRIDE.match(word)
    if match is None or Path(word).exists():
        return False
    # A misspelt key is still taken for one, for the sake of the message, unless the word looks like a path.
    return re.split("[.=]", word)[0] in Job.__struct_fields__ or not _PATH.search(word)


def check_resumed_job(before: Job, after: Job) -> None:
    """Raises JobError when a resumed run changes a setting that the steps so far depend on."""
    for key in changed_settings(before, after):
        if not any(key == allowed or key.startswith(allowed + ".") for allowed in RESUMABLE):
            raise JobError(
                f"{key}: a resumed run keeps the settings it began with, or it would not be the same run; "
                f"only these can change: {', '.join(RESUMABLE)}. Start a new run to change {key}."
            )


def changed_settings(before: Job, after: Job) -> list[str]:
    """Dotted paths at which two jobs differ.

    >>> from satrap.schema import Data, Job, Label, Numeric, override
    >>> job = Job(data=Data(train=("a.csv",), label=(Label(column="y"),)), features=(Numeric(name="x"),))
    >>> changed_settings(job, override(job, ["train.epochs=2", "seed=1"]))
    ['train.epochs', 'seed']
    """
    return list(_differences(job_to_dict(before), job_to_dict(after), ""))


def _differences(a: object, b: object, where: str) -> Iterable[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _differences(a[key], b[key], f"{where}.{key}" if where else key)
    elif a != b:
        yield where


def find_run(run: Path) -> Path:
    """A run folder, checked. Raises CheckpointError that says what is there instead."""
    if (run / "job.yaml").is_file():
        return run
    if not run.exists():
        siblings = [p.name for p in run.parent.glob("*") if p.is_dir()] if run.parent.is_dir() else []
        near = did_you_mean(run.name, siblings) if siblings else "look for it with: ls runs"
        raise CheckpointError(f"{run}: there is no such run folder; {near}")
    raise CheckpointError(f"{run}: not a run folder (it has no job.yaml); runs are made by `satrap train`, under runs/")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the best (else the newest) one of a run folder."""
    from satrap import checkpoint

    return checkpoint.best(path) or checkpoint.find(path)
