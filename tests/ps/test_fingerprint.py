"""A server knows what it has kept by a fingerprint of its tables: the same for every satrap that would make them so."""

from __future__ import annotations

import msgspec
import pytest

from satrap.ps.packing import FINGERPRINTED, Directory, fingerprinted
from satrap.schema import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Admission,
    Capacity,
    Constant,
    Expiry,
    Ftrl,
    Hashed,
    Normal,
    QuotientRemainder,
    Rounding,
    RowWiseAdagrad,
    StateFormat,
    Table,
    TruncatedNormal,
    ValueFormat,
    WireFormat,
    Zeros,
)

TABLES = (
    Table(name="a", dim=8, optimizer=SGD(momentum=0.9), initializer=Normal(std=0.5), max_gradient=1.5),
    Table(
        name="b",
        dim=16,
        optimizer=Adam(state=StateFormat.INT8),
        format=ValueFormat.INT8,
        wire=WireFormat.FP16,
        initializer=TruncatedNormal(),
        capacity=Capacity(rows=1000, evict="frequency"),
        expire=Expiry(steps=9),
        admit=Admission(sightings=3),
    ),
    Table(
        name="c",
        dim=4,
        optimizer=Ftrl(),
        format=ValueFormat.FP16,
        rounding=Rounding.STOCHASTIC,
        initializer=Constant(value=2.0),
        ids=Hashed(rows=10, hashes=2),
    ),
    Table(name="d", dim=4, optimizer=AdamW(), initializer=Zeros(), ids=QuotientRemainder(rows=9)),
    Table(name="e", dim=4, optimizer=Adagrad(), capacity=Capacity(bytes=1 << 20), expire=Expiry(seconds=60)),
    Table(name="f", dim=4, optimizer=RowWiseAdagrad()),
)


def of(*tables: Table, seed: int = 7) -> str:
    return Directory.of(tables).fingerprint(seed).hex()


def test_journals_that_were_written_before_are_still_those_of_their_tables() -> None:
    # Bug: a new field of a table or an optimizer makes servers refuse their own journals after an update.
    assert of(*TABLES) == "91a8b5ddb2f78168a1082f58b7a1585cf0a77564031a4800d24d46981c10468a"


def test_a_setting_that_came_later_counts_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(SGD, frozen=True, kw_only=True, tag_field="kind", tag="sgd"):
        nesterov: bool = False

    monkeypatch.setitem(FINGERPRINTED, Newer, FINGERPRINTED[SGD])  # type: ignore[index]
    assert fingerprinted(Newer(lr=0.5)) == fingerprinted(SGD(lr=0.5))
    assert fingerprinted(Newer(lr=0.5, nesterov=True)) == {**fingerprinted(SGD(lr=0.5)), "nesterov": True}


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.name)
def test_every_setting_changes_the_fingerprint_but_how_rows_travel(table: Table) -> None:
    changes = {"name": "z", "dim": 5, "format": ValueFormat.BF16, "rounding": Rounding.NEAREST, "max_gradient": 9.0}
    changes |= {"initializer": Constant(value=7.0), "optimizer": SGD(lr=9.0), "ids": Hashed(rows=77)}
    changes |= {"capacity": Capacity(rows=77), "expire": Expiry(steps=77), "admit": Admission(sightings=77)}
    assert changes.keys() | {"wire"} >= set(FINGERPRINTED[Table])
    found = {of(table)}
    for name, value in changes.items():
        found.add(of(msgspec.structs.replace(table, **{name: value})))
    assert len(found) == 1 + len(changes)
    assert of(msgspec.structs.replace(table, wire=WireFormat.INT8)) == of(table)
    assert of(table, seed=8) not in found
