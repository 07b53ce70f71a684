"""Fixtures: the command, and a small click log."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_command import Satrap, call, click_table, run


@pytest.fixture
def called(tmp_path: Path) -> Satrap:
    """Runs `satrap` in tmp_path, within this process."""
    return partial(call, tmp_path)


@pytest.fixture
def satrap(tmp_path: Path) -> Satrap:
    """Runs `satrap` in tmp_path, as another process."""
    return partial(run, tmp_path)


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.parquet and test.parquet. Tests must not write there."""
    folder = tmp_path_factory.mktemp("clicks")
    pq.write_table(click_table(3000, seed=0), folder / "train.parquet", row_group_size=500)
    pq.write_table(click_table(1000, seed=1), folder / "test.parquet")
    return folder
