"""The command as a user runs it: another process, its output and its exit code; and the data it is given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from typer.testing import CliRunner

import satrap as package
from satrap.cli import app

TIMEOUT_S = 600
"""For a machine that is busy with other things; nothing waits this long by itself."""
PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}

JOB = """
name: clicks
data: {{train: {data}/train.parquet, test: {data}/test.parquet, label: click, shuffle_rows: 1000}}
features:
  - {{kind: categorical, name: user}}
  - {{kind: categorical, name: item}}
  - {{kind: categorical, name: genres, table: genre, pooling: mean}}
  - {{kind: numeric, name: price, transform: log}}
default_dim: 8
model: {{kind: mlp, hidden: [16]}}
train: {{batch_size: 100, optimizer: {{kind: adam, lr: 0.01}}, embedding_optimizer: {{kind: adagrad, lr: 0.2}}}}
"""
"""A job for `click_table`; format it with data=FOLDER."""


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


Satrap = Callable[..., Outcome]
"""The fixture `satrap`."""


def environment() -> dict[str, str]:
    """Wide and without colours, so that messages can be compared; the same satrap as the tests import."""
    found = str(Path(package.__file__).parents[1])
    return {
        **os.environ,
        "PYTHONPATH": found,
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "OMP_NUM_THREADS": "1",
    }


def run(folder: Path, *words: str | Path, code: int | None = 0) -> Outcome:
    """Runs `satrap` in a folder, as another process; `code` None: any exit code will do."""
    command = [sys.executable, "-m", "satrap", *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return _checked(Outcome(done.returncode, done.stdout, done.stderr), code)


def call(folder: Path, *words: str | Path, code: int | None = 0) -> Outcome:
    """Like `run`, within this process: torch is imported once and not once a command."""
    with chdir(folder):
        done = CliRunner(env=PLAIN).invoke(app, list(map(str, words)), prog_name="satrap")
    return _checked(Outcome(done.exit_code, done.stdout, done.stderr), code)


def _checked(outcome: Outcome, code: int | None) -> Outcome:
    shown = f"exit code {outcome.code}\n{outcome.out}\n{outcome.err}"
    assert code is None or outcome.code == code, shown
    return outcome


def click_table(rows: int = 3000, seed: int = 0) -> pa.Table:
    """Clicks that users and items decide, with one column of every kind that inference knows."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 50, rows), rng.integers(0, 30, rows)
    liked = np.random.default_rng(99)
    taste = liked.normal(size=50)[user] + liked.normal(size=30)[item]
    price = rng.gamma(2.0, 10.0, rows)
    click = rng.random(rows) < 1 / (1 + np.exp(-(1.5 * taste - price / 20)))
    genres = [[f"g{(i * k) % 7}" for k in range(1, 1 + i % 4)] for i in item]
    return pa.table(
        {
            "user": [f"u{i}" for i in user],
            "item": item.astype(np.int64),
            "price": price,
            "genres": pa.array(genres, pa.list_(pa.string())),
            "click": click.astype(np.int8),
        }
    )
