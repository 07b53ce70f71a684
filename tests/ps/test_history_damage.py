"""A history that was damaged is refused by name, or recovered to a state that was."""

from __future__ import annotations

from pathlib import Path

import pytest
from histories import TABLES, Life, digest, handler
from history_fuzz import STATES, fuzz, history

from satrap.errors import JournalError
from satrap.ps import LocalService
from satrap.ps.handling import Handler
from satrap.ps.keeper import Keeper, Keeping
from satrap.wire import Limits


def test_damaged_histories_are_refused_or_recovered_to_a_state_that_was() -> None:
    outcomes = fuzz(250, seed=5)
    assert outcomes["refused"] > 100
    assert outcomes["recovered"] > 5


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    history(tmp_path / "x")
    (path,) = (tmp_path / "x").glob("snapshot-*/manifest.json")
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match=r"manifest\.json"):
            Life(tmp_path / "x")
    path.write_bytes(data)
    life = Life(tmp_path / "x")
    assert digest(life.handler) == STATES[-1]
    life.close()


def test_a_history_in_use_is_refused_to_a_second_server(tmp_path: Path) -> None:
    # A server that was stopped, replaced, and woken would write beside its successor.
    life = Life(tmp_path / "x")
    with pytest.raises(JournalError, match="keeps its history there"):
        Life(tmp_path / "x")
    life.close()
    Life(tmp_path / "x").close()


def test_the_history_of_another_server_or_other_tables_is_refused(tmp_path: Path) -> None:
    history(tmp_path / "x")
    with pytest.raises(JournalError, match="of server 0, not 1"):
        Keeper(Keeping(folder=tmp_path / "x"), handler(), 1, Limits())
    service = LocalService(TABLES[:1], seed=3, partitions=4, threads=1)
    with pytest.raises(JournalError, match="of other tables"):
        Keeper(Keeping(folder=tmp_path / "x"), Handler(service, seed=3, index=0, epoch=0), 0, Limits())
    service = LocalService(TABLES, seed=3, partitions=8, threads=1)
    with pytest.raises(JournalError, match=r"store\.partitions=4"):
        Keeper(Keeping(folder=tmp_path / "x"), Handler(service, seed=3, index=0, epoch=0), 0, Limits())
