"""The command as a user runs it: another process, its output and its exit code; and the data it is given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

import satrap as package

TIMEOUT_S = 120


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
    """Runs `satrap` in a folder; `code` None: any exit code will do."""
    command = [sys.executable, "-m", "satrap", *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if code is not None:
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return Outcome(done.returncode, done.stdout, done.stderr)


def click_table(rows: int = 3000, seed: int = 0) -> pa.Table:
    """Clicks that users and items decide, with one column of every kind that inference knows."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 50, rows), rng.integers(0, 30, rows)
    taste = np.random.default_rng(99).normal(size=(50, 30))[user, item]
    price = rng.gamma(2.0, 10.0, rows)
    click = rng.random(rows) < 1 / (1 + np.exp(-(2 * taste - price / 20)))
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
