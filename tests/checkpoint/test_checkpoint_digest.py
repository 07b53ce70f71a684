"""The digest: equal for equal models however they are laid out, different for any difference in the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from memory_rows import MemoryRows, dense_parts, filled, job_of, push

from satrap import checkpoint
from satrap.ps import LocalService
from satrap.ps.protocol import RowBlock
from satrap.schema import Adagrad, Adam, AdamW, Job, Store, Table

Save = Callable[..., Path]


def test_layout_does_not_change_the_digest(tmp_path: Path, save: Save) -> None:
    job = job_of(Table(name="user", dim=4, optimizer=Adam()), Table(name="item", dim=3))
    model, optimizer = dense_parts()
    parts: dict[str, Any] = {"dense": model.state_dict(), "optimizer": optimizer.state_dict()}
    digests = set()
    for partitions, threads in ((1, 1), (4, 2), (64, 4)):
        service = LocalService(job.resolved_tables(), seed=1, partitions=partitions, threads=threads)
        for seq in range(2):
            push(service, seq)
        path = save(tmp_path / str(partitions), job, service, partitions, threads=threads, **parts)
        digests |= {checkpoint.digest(path), checkpoint.content_digest(service, **parts)}
        moved = path.rename(tmp_path / f"moved{partitions}")
        digests.add(checkpoint.digest(moved))
    # The order of the names is no content either; nor are the job's other settings.
    shuffled = {k: parts["dense"][k] for k in reversed(parts["dense"])}
    other = msgspec.structs.replace(job, store=Store(partitions=8, threads=2), name="other")
    digests.add(checkpoint.digest(save(tmp_path, other, service, 9, **{**parts, "dense": shuffled}, extra={"x": 1})))
    assert len(digests) == 1


@pytest.mark.parametrize(
    "what", ["id", "value", "state", "row", "dense", "name", "shape", "dtype", "optimizer", "kind"]
)
def test_any_difference_in_the_model_changes_the_digest(what: str, job: Job) -> None:
    def content(changed: str) -> str:
        tables = job.resolved_tables()
        dense = {"w": torch.zeros(4), "b": torch.ones(2)}
        optimizer: dict[str, Any] = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}
        match changed:
            case "dense":
                dense["w"][3] = -0.0
            case "name":
                dense["v"] = dense.pop("w")
            case "shape":
                dense["w"] = dense["w"].reshape(2, 2)
            case "dtype":
                dense["w"] = dense["w"].view(torch.int32)
            case "optimizer":
                optimizer["state"][0]["step"] += 1
            case "kind":
                tables = (msgspec.structs.replace(tables[0], optimizer=AdamW()), tables[1])
        service = MemoryRows(tables)
        for table in tables:
            block = filled(job, 50).export_rows(table.name, 2)
            if table.name == "item":
                ids, values, state = block.ids.copy(), block.values.copy(), block.state.copy()
                match changed:
                    case "id":
                        ids[0] += 1
                    case "value":
                        values.view("u2")[3, 1] ^= 1
                    case "state":
                        state.view("u4")[3, 0] ^= 1
                    case "row":
                        ids, values, state = ids[1:], values[1:], state[1:]
                block = dataclasses.replace(block, ids=ids, values=values, state=state)
            service.import_rows(table.name, block)
        return checkpoint.content_digest(service, dense, optimizer)

    assert content("nothing") == content("nothing")
    assert content(what) != content("nothing")


def test_the_digest_of_a_fixed_model_does_not_change_with_versions() -> None:
    # Pinned: digests people have written down must go on comparing equal.
    service = MemoryRows([Table(name="user", dim=2, optimizer=Adagrad())])
    state = np.array([[1, 2], [3, 4]], np.float32)
    service.import_rows("user", RowBlock(np.array([5, 2**63], np.uint64), state / 8, state))
    assert checkpoint.content_digest(service, {"w": torch.arange(3.0)}, None) == PINNED


PINNED = "c5a6264aaa7ac4e224fade9320dc53e79e2ddc24b9fc7c05d1fa7651609a1353"
