"""Tables of every kind against plain dicts: millions of random operations, crashes and recoveries in between.

    python tests/store/table_fuzz.py --operations 2000000 --seed 1

The model of a table is a dict of id → (values, state) as bytes. What an update makes of a row is asked of a table that
holds nothing but the rows of that update: no index that has grown, no other rows, no disk. A server with a journal is
killed (its memory and its disk file forgotten) and brought back every now and then, and must be what it was.

What a server holds, marks and sketches included, is the same after a crash as before it; and a cut that was made some
operations ago still gives the rows of then.

Rows of tables without bounds must be those of the dict, all of them. Of a table that evicts, a row that is there must
be the dict's, and there are no more than the capacity.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap import wire
from satrap.ps import LocalService, Role
from satrap.ps.cut import RowCut
from satrap.ps.handling import Handler
from satrap.ps.keeper import Keeper, Keeping
from satrap.ps.snapshots import Snapshots
from satrap.schema import SGD, Adam, Admission, Capacity, Cold, Expiry, RowWiseAdagrad, StateFormat, Table, ValueFormat
from satrap.store import Store

Ids = NDArray[np.uint64]
PARTITIONS, SEED = 8, 3
LIMITS = wire.Limits(frame_bytes=1 << 22)

TABLES = (
    Table(name="plain", dim=4, optimizer=RowWiseAdagrad(lr=0.1)),
    Table(name="cold", dim=16, optimizer=RowWiseAdagrad(lr=0.1), cold=Cold(memory_rows=64)),
    Table(
        name="narrow",
        dim=7,
        format=ValueFormat.INT8,
        optimizer=Adam(lr=0.05, state=StateFormat.INT8),
        cold=Cold(memory_rows=40, evict="frequency"),
    ),
    Table(
        name="seen",
        dim=3,
        format=ValueFormat.BF16,
        optimizer=SGD(lr=0.5, momentum=0.9),
        admit=Admission(sightings=2, window=1024),
        cold=Cold(memory_rows=32),
    ),
    Table(name="bounded", dim=5, format=ValueFormat.FP16, optimizer=SGD(lr=0.1), capacity=Capacity(rows=200)),
    Table(
        name="aged",
        dim=2,
        optimizer=RowWiseAdagrad(lr=0.1),
        capacity=Capacity(rows=300, evict="frequency"),
        expire=Expiry(steps=400),
        admit=Admission(sightings=2, window=2000),
    ),
)


class Model:
    """One table as a dict."""

    def __init__(self, table: Table) -> None:
        # Where it lies and what bounds it are no part of what a row is.
        bare = Table(
            name=table.name,
            dim=table.dim,
            format=table.format,
            optimizer=table.optimizer,
            initializer=table.initializer,
        )
        self._table, self._bare = table, bare
        self.rows: dict[int, tuple[bytes, bytes]] = {}

    def _scratch(self, ids: list[int]) -> Store:
        """A table of these rows and no others."""
        store = Store([self._bare], seed=SEED, partitions=1, threads=1)
        if ids:
            spec = store.specs[0]
            values = np.frombuffer(b"".join(self.rows[i][0] for i in ids), np.uint8)
            state = np.frombuffer(b"".join(self.rows[i][1] for i in ids), np.float32)
            stored = values.copy().reshape(len(ids), spec.value_bytes)
            state = state.copy().reshape(len(ids), spec.state_words)
            store._native.import_rows(0, [(np.array(ids, np.uint64), stored, state, None)])
        return store

    def take(self, store: Store, ids: list[int]) -> None:
        """The rows of a scratch table are those of the model from now on."""
        self.rows |= rows_in(store, self._table.name, np.array(ids, np.uint64))

    def pull(self, ids: Ids) -> NDArray[np.float32]:
        """What is read of these ids, without making any."""
        store = self._scratch([int(i) for i in ids if int(i) in self.rows])
        return store.pull(self._table.name, ids)[0]

    def make(self, ids: list[int]) -> None:
        """New rows."""
        store = self._scratch([])
        store.pull(self._table.name, np.array(ids, np.uint64), create=True)
        self.take(store, ids)

    def push(self, ids: Ids, gradients: NDArray[np.float32]) -> int:
        """Steps the rows that are there; returns how many."""
        there = [int(i) for i in ids if int(i) in self.rows]
        if there:
            store = self._scratch(there)
            store.push(self._table.name, ids, gradients)
            self.take(store, there)
        return len(there)


def rows_in(store: Store, table: str, ids: Ids) -> dict[int, tuple[bytes, bytes]]:
    """Those of these ids that have a row: id → values and state as bytes. Rows as exported say all that matters but, of
    formats that draw no random bits, the count of updates."""
    found, values, state, _ = store.read_rows(table, ids)
    return {int(i): (v.tobytes(), s.tobytes()) for i, v, s in zip(found, values, state, strict=True)}


class Run:
    """A server with its history, and the dicts that it must agree with."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng, self._np = folder, random.Random(seed), np.random.default_rng(seed)
        self.models = {t.name: Model(t) for t in TABLES}
        self._numbers = iter(range(1000, 1 << 62))
        self._seq, self._last = 0, None
        self.done: Counter[str] = Counter()
        self._cut: tuple[RowCut, dict[tuple[str, int], list[bytes]]] | None = None
        self._begin()

    def _begin(self) -> None:
        self.service = LocalService(TABLES, seed=SEED, partitions=PARTITIONS, threads=1, cold_folder=str(self._folder))
        self.service.life = 77
        self._handler = Handler(self.service, seed=SEED, index=0, epoch=0)
        keeping = Keeping(folder=self._folder / "history", level="process", segment_bytes=1 << 20)
        self._keeper = Keeper(keeping, self._handler, 0, LIMITS)
        self._ask(wire.Hello(request=1, client=0, fingerprint=self._handler.fingerprint))

    def _ask(self, request: wire.Message) -> wire.Message:
        ((_, answer),) = self._handler.handle(b"x", request, Role.ADMIN)
        assert not isinstance(answer, wire.Failure), answer
        return answer

    def _some(self, table: Table) -> Ids:
        spread = 4000 if table.cold is not None else 900
        n = self._rng.randrange(1, 120)
        core = (spread * self._np.random(n) ** 3).astype(np.uint64)
        odd = self._np.integers(0, 2**63, self._rng.randrange(3), np.uint64)
        return np.unique(np.concatenate([core * np.uint64(0x9E3779B97F4A7C15), odd]))

    def step(self) -> int:
        """One random operation; returns how many ids it named."""
        number = self._rng.randrange(len(TABLES))
        table = TABLES[number]
        model, ids = self.models[table.name], self._some(table)
        kind = self._rng.choices(
            ("pull", "push", "evaluate", "prefetch", "erase", "import", "check", "snapshot", "crash", "cut"),
            (40, 40, 10, 10, 3, 3, 2, 0.3, 0.3, 0.6),
        )[0]
        self.done[kind] += 1
        section = (wire.Section(number, ids.size, table.dim),)
        if table.capacity is not None:
            self._forget_evicted(table, ids)
        match kind:
            case "pull":
                reply = self._ask(wire.Pull(request=next(self._numbers), sections=section, ids=ids, create=True))
                made = rows_in(self.service.store, table.name, ids)
                new = [int(i) for i in ids if int(i) in made and int(i) not in model.rows]
                model.make(new)
                if table.admit is None and table.capacity is None:
                    assert len(made) == ids.size
                self._same_values(model, ids, reply)
            case "evaluate":
                reply = self._ask(wire.Pull(request=next(self._numbers), sections=section, ids=ids, create=False))
                self._same_values(model, ids, reply)
            case "push":
                self._push(section, model, ids, table)
            case "prefetch":
                self.service.prefetch({table.name: ids})
            case "erase":
                there = sum(model.rows.pop(int(i), None) is not None for i in ids[:9])
                erased = self._ask(wire.Erase(request=next(self._numbers), table=number, ids=ids[:9].copy()))
                assert isinstance(erased, wire.Done)
                assert erased.count == there
            case "import":
                self._import(number, model, ids)
            case "check":
                self.check(table)
            case "snapshot":
                Snapshots(self._keeper, self._handler, lambda work: work()).take()
            case "crash":
                # What was in memory and in the file without a name is gone; nothing is written on the way out.
                want, self._cut = self._everything(self.service), None
                self._keeper.close()
                self._begin()
                for t in TABLES:
                    self.check(t)
                self._same(self._everything(self.service), want)
            case "cut":
                if self._cut is None:
                    self._cut = self.service.cut(waits=False), self._everything(self.service)
                else:
                    cut, want = self._cut
                    self._same(self._everything(cut), want)
                    cut.close()
                    self._cut = None
        return int(ids.size)

    def _everything(self, rows: RowCut | LocalService) -> dict[tuple[str, int], list[bytes]]:
        """Of every partition of every table, all that a file would hold: marks, clocks and sketches too."""
        out = {}
        for t in TABLES:
            for p in range(PARTITIONS):
                b = rows.export_rows(t.name, p)
                out[t.name, p] = [
                    b"" if x is None else x.tobytes() for x in (b.ids, b.values, b.state, b.marks, b.bound)
                ]
        return out

    def _same(self, have: dict[tuple[str, int], list[bytes]], want: dict[tuple[str, int], list[bytes]]) -> None:
        for unit, parts in want.items():
            for what, a, b in zip(("ids", "values", "state", "marks", "bound"), have[unit], parts, strict=True):
                assert a == b, f"{unit}: {what}"

    def _same_values(self, model: Model, ids: Ids, reply: wire.Message) -> None:
        assert isinstance(reply, wire.RowsReply)
        want = model.pull(ids)
        np.testing.assert_array_equal(np.frombuffer(reply.values, np.float32).reshape(want.shape), want)

    def _push(self, section: Any, model: Model, ids: Ids, table: Table) -> None:
        self._seq += 1
        gradients = self._np.standard_normal((ids.size, table.dim)).astype(np.float32)
        name = (0, self._seq)
        ack = self._ask(
            wire.Push(
                request=next(self._numbers), client=0, epoch=0, seq=self._seq, sections=section, ids=ids,
                gradients=gradients.view(np.uint8).reshape(-1), previous=self._last,
            )
        )  # fmt: skip
        self._last = name
        assert isinstance(ack, wire.AckReply)
        assert ack.applied == model.push(ids, gradients)
        assert ack.applied + sum(ack.refused.values()) == ids.size

    def _import(self, number: int, model: Model, ids: Ids) -> None:
        """The rows of some ids take the place of others' rows, which may be in memory, on disk or nowhere."""
        table = TABLES[number]
        source = [i for i in list(model.rows)[: ids.size]]
        if not source or table.capacity is not None:
            return
        ids = ids[: len(source)].copy()
        found, values, state, _ = self.service.store.read_rows(table.name, np.array(source[: ids.size], np.uint64))
        rows = [model.rows[int(i)] for i in found]
        request = wire.ImportRows(request=next(self._numbers), table=number, ids=ids, values=values, state=state)
        self._ask(request)
        model.rows |= dict(zip((int(i) for i in ids), rows, strict=True))

    def _forget_evicted(self, table: Table, ids: Ids) -> None:
        model = self.models[table.name]
        there = rows_in(self.service.store, table.name, ids)
        for i in ids:
            if int(i) in model.rows and int(i) not in there:
                del model.rows[int(i)]

    def check(self, table: Table) -> None:
        """Every row, wherever it lies."""
        blocks = [self.service.export_rows(table.name, p) for p in range(PARTITIONS)]
        have = {
            int(i): (v.tobytes(), s.tobytes()) for b in blocks for i, v, s in zip(b.ids, b.values, b.state, strict=True)
        }
        model = self.models[table.name]
        if table.capacity is not None:
            assert table.capacity.rows is not None
            assert len(have) <= table.capacity.rows
            model.rows = {i: row for i, row in model.rows.items() if i in have}
        assert have == model.rows, table.name
        assert self.service.stats()[table.name].rows == len(have)

    def close(self) -> None:
        for t in TABLES:
            self.check(t)
        self._keeper.close()


def fuzz(operations: int, seed: int) -> Counter[str]:
    """So many ids' worth of operations; returns how often each kind was done. Raises AssertionError."""
    folder = Path(tempfile.mkdtemp(prefix="satrap-table-fuzz-"))
    try:
        run, done = Run(folder, seed), 0
        while done < operations:
            done += run.step()
        run.close()
        cold = {t.name: run.service.stats()[t.name].cold for t in TABLES if t.cold is not None}
        assert all(c is not None and c.returned > 0 and c.rows > 0 for c in cold.values()) or operations < 20_000
        return run.done
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=1_000_000, help="ids named by operations, in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(dict(fuzz(options.operations, options.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
