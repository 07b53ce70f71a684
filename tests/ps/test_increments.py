"""Snapshots that hold what has changed since the last one, and recovery from a chain of them."""

from __future__ import annotations

import json
from pathlib import Path

import histories
import numpy as np
import pytest
from histories import Life, digest, requests

from satrap import wire
from satrap.durable.check import check
from satrap.durable.snapshot import GONE, Snapshot, decode_manifest, encode_manifest, snapshots
from satrap.errors import JournalError
from satrap.ps import snapshots as module
from satrap.store import crc32c

SECTIONS = (wire.Section(0, 200, 3), wire.Section(1, 200, 2))
EVERY = np.arange(200, dtype=np.uint64) * 7919


@pytest.fixture(autouse=True, params=["PLAIN", "COLD"])
def plain_tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded tables have tests of their own; where rows lie makes no difference."""
    monkeypatch.setattr(histories, "TABLES", getattr(histories, request.param))


def ids(*which: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(which, np.uint64) * 7919


def pull(number: int) -> wire.Pull:
    return wire.Pull(request=number, sections=SECTIONS, ids=np.concatenate([EVERY, EVERY]), create=True)


def push(seq: int, of: np.ndarray[tuple[int], np.dtype[np.uint64]], *, client: int = 0, merge: int = 1) -> wire.Push:
    gradients = np.full(of.size * 3, 0.5, np.float32)
    return wire.Push(
        request=1000 * (client + 1) + seq, client=client, epoch=0, seq=seq, merge=merge,
        sections=(wire.Section(0, of.size, 3),), ids=of, gradients=gradients.view(np.uint8),
    )  # fmt: skip


def rows_in(snapshot: Snapshot, life: Life) -> dict[str, list[int]]:
    """Table → which rows a snapshot holds."""
    tables = {t.name: t for t in life.handler.service.tables()}
    out: dict[str, list[int]] = {}
    for p in range(4):
        for name, block in snapshot.rows(p, tables):
            out[name] = sorted(out.get(name, []) + (block.ids // np.uint64(7919)).tolist())
    return out


def again(folder: Path, want: str) -> None:
    life = Life(folder)
    assert digest(life.handler) == want
    life.close()
    assert check(folder).damage is None


def test_an_increment_holds_the_rows_that_changed_and_recovery_has_all(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.ask(pull(10))
    life.snapshot()
    life.ask(push(1, ids(3, 5)))
    life.ask(wire.Erase(request=20, table=1, ids=ids(7, 8)))
    life.snapshot()
    life.ask(push(2, ids(5, 9)))
    chain = Snapshot.chain(tmp_path)
    assert [s.manifest.base for s in chain] == [None, chain[0].manifest.begin]
    assert rows_in(chain[1], life) == {"a": [3, 5]}
    (erased,) = (wire.decode(r.frames) for r in chain[1].state(GONE))
    assert isinstance(erased, wire.Erase)
    assert sorted(erased.ids // np.uint64(7919)) == [7, 8]
    want = digest(life.handler)
    life.close()
    again(tmp_path, want)


def test_a_push_that_waited_when_the_last_snapshot_began_counts_as_a_change_after_it(tmp_path: Path) -> None:
    # Its record is before that snapshot, and its rows are stepped by the record of another client's push behind it.
    life = Life(tmp_path)
    life.ask(pull(10))
    life.ask(push(1, ids(3), client=0, merge=2))
    life.snapshot()
    life.ask(push(1, ids(4), client=1, merge=2))
    life.snapshot()
    assert rows_in(Snapshot.chain(tmp_path)[-1], life) == {"a": [3, 4]}
    want = digest(life.handler)
    life.close()
    again(tmp_path, want)


def test_rows_that_change_while_an_increment_is_taken_are_as_they_were_at_their_units_position(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.ask(pull(10))
    life.snapshot()
    seq = iter(range(1, 1000))
    life.ask(push(next(seq), ids(1)))
    # After each piece of the snapshot a push of rows in every unit: some are copied with it, some without.
    life.snapshot(lambda: life.ask(push(next(seq), EVERY[::3].copy())))
    want = digest(life.handler)
    life.close()
    again(tmp_path, want)


def test_a_cleared_server_and_a_long_chain_begin_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHAIN_MAX", 3)
    life = Life(tmp_path)
    life.ask(pull(10))
    lengths = []
    for seq in range(1, 6):
        life.ask(push(seq, ids(seq)))
        life.snapshot()
        lengths.append(len(Snapshot.chain(tmp_path)))
        assert len(snapshots(tmp_path)) == lengths[-1]  # others are removed
    assert lengths == [1, 2, 3, 1, 2]
    life.ask(wire.Clear(request=500))
    life.ask(push(1, ids(1)))
    life.snapshot()
    assert len(Snapshot.chain(tmp_path)) == 1
    want = digest(life.handler)
    life.close()
    again(tmp_path, want)


def test_where_nothing_has_changed_the_last_snapshot_is_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHAIN_MAX", 2)
    life = Life(tmp_path)
    life.ask(pull(10))
    for seq in range(1, 5):
        path = life.snapshot()
        assert path == life.snapshot()  # also where the next one would begin a chain
        life.ask(push(seq, ids(seq)))
    want = digest(life.handler)
    life.close()
    again(tmp_path, want)


def test_a_partition_that_left_and_came_back_between_snapshots_is_taken_whole(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.ask(pull(10))
    life.snapshot()
    life.ask(wire.Place(request=30, number=0, addresses=("a", "b"), owners=(0, 0, 0, 0)))
    life.ask(wire.Release(request=31, partition=1, number=1 << 16))
    life.ask(wire.Place(request=32, number=1 << 16, addresses=("a", "b"), owners=(0, 1, 0, 0)))
    life.ask(wire.Forget(request=33, partition=1))
    life.snapshot()
    assert Snapshot.chain(tmp_path)[-1].manifest.whole == (1,)
    want = digest(life.handler)
    life.close()
    again(tmp_path, want)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_requests_between_any_snapshots_come_back(seed: int, tmp_path: Path) -> None:
    life = Life(tmp_path)
    rest = iter(requests(120, seed=seed))
    taken = increments = 0

    def one_more() -> None:
        for m in [next(rest, None)]:
            if m is not None:
                life.ask(m)

    for i, m in enumerate(rest):
        life.ask(m)
        if i % 17 == 16:
            life.snapshot(one_more)
            taken += 1
            increments += Snapshot.chain(tmp_path)[-1].manifest.base is not None
        if i % 40 == 39:
            want = digest(life.handler)
            life.close()
            life = Life(tmp_path)
            assert digest(life.handler) == want
    assert taken > 3
    assert increments > 0
    life.close()


def test_a_chain_with_a_snapshot_missing_is_refused_by_name(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.ask(pull(10))
    first = life.snapshot()
    life.ask(push(1, ids(1)))
    life.snapshot()
    life.close()
    assert first is not None
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match=f"changes the rows of {first.name}, which is missing"):
        Life(tmp_path)


def test_a_manifest_of_version_1_is_read_as_one_with_all_rows(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.ask(pull(10))
    path = life.snapshot()
    life.close()
    assert path is not None
    text = (path / "manifest.json").read_bytes()
    manifest = decode_manifest(text, "x")
    tree = json.loads(encode_manifest(manifest).rpartition(b",\n")[0] + b"}")
    del tree["base"], tree["whole"]
    tree["version"] = 1
    body = json.dumps(tree, indent=1).encode()[:-2]
    old = body + f',\n  "crc32c": "{crc32c([body]):08x}"\n}}\n'.encode()
    assert decode_manifest(old, "x").base is None
    assert decode_manifest(old, "x").positions == manifest.positions
