"""From the words of a command line to a job: job file or data files, overrides, run folders, checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from satrap.cli.failures import UsageError
from satrap.errors import CheckpointError, JobError, did_you_mean
from satrap.schema import Job, job_to_dict
from satrap.schema.strict import item_name, join

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w -]+)*=")

_PATH = re.compile(r"/|\.(parquet|pq|csv|tsv)(\.\w+)?$")

_FIXED = re.compile(
    r"seed|name|default_dim|train\.checkpoint\.folder|model\b.*|features\b.*|store\.partitions|data(?!\.test)\b.*"
    r"|tables(\.(.*\.)?(name|dim|initializer\b.*))?"
)
"""Settings that a resumed run keeps: what the model is, and which rows it has seen in which order. (The format in which
rows are stored can change: they are converted.)"""


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
    """Raises JobError when a resumed run changes what its model is or which data it has seen."""
    for key in changed_settings(before, after):
        if _FIXED.fullmatch(key):
            raise JobError(
                f"{key}: a resumed run keeps its data, features, tables and model, or it would not be the same run; "
                f"start a new run to change it. Settings of train can change, and data.test."
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
            yield from _differences(a[key], b[key], join(where, key))
    elif isinstance(a, list) and isinstance(b, list) and [*map(item_name, a)] == [*map(item_name, b)]:
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, join(where, item_name(x, i)))
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
    """The checkpoint that `path` means: itself, the best (else the newest) one of a run folder, or RUN/best,
    RUN/latest, RUN/step-00001234. It may be a URL."""
    from satrap import checkpoint

    return checkpoint.best(path) or checkpoint.find(path)


def is_checkpoint(path: Path) -> bool:
    """Whether it is, or names, one checkpoint, and not a folder of them."""
    from satrap import checkpoint

    found, home = find_checkpoint(path), checkpoint.place(path)
    return home == found or home.name in ("best", "latest") or home.name.startswith("step-")
