"""s3:// for data and checkpoints, through pyarrow's own client, to a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_rows import MemoryRows, global_rows, save_step

from satrap import checkpoint
from satrap.checkpoint import place, places
from satrap.errors import CheckpointError
from satrap.schema import Job
from satrap.testing.s3 import S3

RUN = "s3://models/runs/a"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with S3("models") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "none")
        monkeypatch.setenv("AWS_REGION", "here")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setattr(places, "_opened", {})
        yield server


def test_a_checkpoint_goes_to_s3_and_comes_back(s3: S3, job: Job, rows: MemoryRows, saved: Path) -> None:
    first = save_step(place(RUN), job, rows, 10)
    second = save_step(place(RUN), job, rows, 20)
    checkpoint.mark_best(first)
    assert checkpoint.digest(first) == checkpoint.digest(saved)
    assert checkpoint.find(f"{RUN}/best") == first
    assert checkpoint.checkpoints(RUN) == [first, second]
    service = MemoryRows(job.resolved_tables(), 8)
    checkpoint.load(RUN).restore_rows(service)
    assert global_rows(service, "user") == global_rows(rows, "user")
    save_step(place(RUN), job, rows, 30)
    assert [p.name for p in checkpoint.retain(RUN, 1)] == ["step-00000020"]
    assert not [n for n in s3.objects if "step-00000020" in n]


def test_s3_that_is_busy_now_and_then_is_asked_again(s3: S3, job: Job, rows: MemoryRows) -> None:
    refused: list[str] = []

    def busy(method: str, name: str, count: int) -> bool:
        once = method in ("PUT", "GET") and "rows-00001" in name and method not in refused
        refused.extend([method] if once else [])
        return once

    s3.busy = busy
    path = save_step(place(RUN), job, rows, 10)
    assert checkpoint.verify(path).step == 10
    assert refused == ["PUT", "GET"]


def test_an_object_sent_in_parts_and_one_that_is_damaged(
    s3: S3, job: Job, rows: MemoryRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satrap.checkpoint.objects.WHOLE_BYTES", 100)
    path = save_step(place(RUN), job, rows, 10)
    checkpoint.verify(path)
    name = "models/runs/a/step-00000010/rows-00001.satrap"
    s3.objects[name] = s3.objects[name][:-1]
    with pytest.raises(CheckpointError, match=f"{path}/rows-00001.satrap: .* truncated at byte offset"):
        checkpoint.verify(path)


def test_data_is_read_from_s3(s3: S3, tmp_path: Path) -> None:
    from satrap.data.files import find_files

    pq.write_table(pa.table({"x": [1, 2, 3]}), tmp_path / "x.parquet")
    s3.objects["models/data/x.parquet"] = (tmp_path / "x.parquet").read_bytes()
    (file,) = find_files("s3://models/data/*.parquet")
    assert file.name == "s3://models/data/x.parquet"
    assert pq.read_table(file.path, filesystem=file.filesystem)["x"].to_pylist() == [1, 2, 3]
