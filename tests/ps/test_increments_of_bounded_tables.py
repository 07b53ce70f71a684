"""Snapshots of bounded tables that hold what has changed: rows that went by a rule are in no record, and those that
stay age without being named."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path

import histories
import numpy as np
import pytest
from histories import Life, digest
from msgspec import structs

from satrap import wire
from satrap.durable.check import check
from satrap.durable.snapshot import PLAIN, VERSION, Snapshot
from satrap.ps import snapshots as module
from satrap.schema import Adam, Admission, Capacity, Expiry, Table

UNBOUNDED = Table(name="a", dim=3, optimizer=Adam(lr=0.1))
RULES = {
    "recency": {"capacity": Capacity(rows=64)},
    "frequency": {"capacity": Capacity(rows=64, evict="frequency")},
    "expiry": {"expire": Expiry(steps=40)},
    "admission": {"admit": Admission(sightings=2, window=100)},
    "all, recency": {
        "capacity": Capacity(rows=64), "expire": Expiry(steps=50), "admit": Admission(sightings=2, window=200),
    },
    "all, frequency": {
        "capacity": Capacity(rows=64, evict="frequency"), "expire": Expiry(steps=60),
        "admit": Admission(sightings=2, window=200),
    },
}  # fmt: skip
"""Of 4 partitions: marks of recency are clamped with every 64th row that one makes, those of frequency halved with
every 16th, and ages rise with every second step."""


@pytest.fixture(autouse=True, params=sorted(RULES))
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = structs.replace(UNBOUNDED, name="b", dim=2, **RULES[request.param])
    monkeypatch.setattr(histories, "TABLES", (UNBOUNDED, bounded))


class Steps:
    """Pulls of ids drawn by a power law, each with a push of the same ids."""

    def __init__(self, seed: int, ids: int = 300) -> None:
        self._rng, self._ids, self._seq = np.random.default_rng(seed), ids, 0
        self.requests = count(10_000)

    def __call__(self, life: Life) -> None:
        self._seq += 1
        drawn = (self._ids * self._rng.random(12) ** 2).astype(np.uint64)
        self.of(life, np.unique(drawn) * np.uint64(7919) + np.uint64(1))

    def of(self, life: Life, ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        sections = (wire.Section(1, ids.size, 2),)
        life.ask(wire.Pull(request=next(self.requests), sections=sections, ids=ids, create=True))
        life.ask(
            wire.Push(
                request=next(self.requests), client=0, epoch=0, seq=self._seq, sections=sections, ids=ids,
                gradients=self._rng.standard_normal(2 * ids.size).astype(np.float32).view(np.uint8),
            )
        )  # fmt: skip

    def new(self, life: Life, first: int, ids: int) -> None:
        """So many ids that have not come before."""
        self._seq += 1
        self.of(life, np.arange(first, first + ids, dtype=np.uint64) * np.uint64(7919) + np.uint64(1))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_recovery_from_increments_has_the_rows_and_marks_there_were(seed: int, tmp_path: Path) -> None:
    life, step = Life(tmp_path), Steps(seed)
    rng = np.random.default_rng(seed)
    longest = 0
    for _ in range(8):
        for _ in range(int(rng.integers(1, 30))):
            step(life)
        life.snapshot(partial(step, life))
        chain = Snapshot.chain(tmp_path)
        longest = max(longest, len(chain))
        assert chain[-1].manifest.version == (PLAIN if len(chain) == 1 else VERSION)
        for _ in range(int(rng.integers(0, 10))):
            step(life)
        want = digest(life.handler)
        life.close()
        life = Life(tmp_path)
        assert digest(life.handler) == want
    # What was recovered goes on as the other would have: which rows go next depends on marks alone.
    for _ in range(20):
        step(life)
    want = digest(life.handler)
    life.close()
    assert longest > 1
    assert check(tmp_path).damage is None
    life = Life(tmp_path)
    assert digest(life.handler) == want
    life.close()


def test_an_increment_leaves_out_rows_that_only_grew_older(tmp_path: Path) -> None:
    life, step = Life(tmp_path), Steps(1)
    for _ in range(30):
        step(life)
    life.snapshot()
    step(life)
    life.snapshot()
    one, two = Snapshot.chain(tmp_path)
    tables = {t.name: t for t in life.handler.service.tables()}
    all_rows, changed = (sum(b.ids.size for p in range(4) for _, b in s.rows(p, tables)) for s in (one, two))
    assert changed <= 12 < all_rows
    life.close()


def test_rows_that_outlive_many_others_are_as_old_as_they_were(tmp_path: Path) -> None:
    # Those are erased, so that room is left; a byte does not hold how old the first ones become.
    life, step = Life(tmp_path), Steps(1)
    for _ in range(2):
        step.new(life, 0, 8)
    life.snapshot()
    for i in range(1, 100):
        step.new(life, 20 * i, 20)
        gone = np.arange(20 * i, 20 * i + 20, dtype=np.uint64) * np.uint64(7919) + np.uint64(1)
        life.ask(wire.Erase(request=next(step.requests), table=1, ids=gone))
        if i % 33 == 0:
            life.snapshot()
    assert len(Snapshot.chain(tmp_path)) > 1
    want = digest(life.handler)
    life.close()
    life = Life(tmp_path)
    assert digest(life.handler) == want
    life.close()


@pytest.mark.parametrize("tables", ["recency", "frequency"], indirect=True)
@pytest.mark.parametrize("when", ["before it begins", "while it is taken"])
def test_where_more_rows_went_than_are_kept_in_mind_all_are_taken(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE_S", 0.0)  # a unit at a time
    life, step = Life(tmp_path), Steps(1)
    for _ in range(10):
        step(life)
    life.snapshot()
    more = iter(range(1000, 1_000_000, 40))

    def many() -> None:
        if len(Snapshot.chain(tmp_path)) == 1:
            for _ in range(150):
                step.new(life, next(more), 40)

    if when == "before it begins":
        many()
        life.snapshot()
        assert set(Snapshot.chain(tmp_path)[-1].manifest.whole) == {0, 1, 2, 3}
    else:
        step(life)
        # Once the first partition is copied, so that it is too late to take them whole.
        pieces = iter(range(100))
        taken = module.Snapshots(life.keeper, life.handler, lambda work: (work(), next(pieces) == 1 and many())[0])
        assert taken.take() is not None
        assert len(Snapshot.chain(tmp_path)) == 1
        assert taken.meters.failed == 0
    want = digest(life.handler)
    life.close()
    life = Life(tmp_path)
    assert digest(life.handler) == want
    life.close()
