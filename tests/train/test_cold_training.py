"""Training with most rows on disk: the bits of training with all of them in memory, however it is cut up."""

from __future__ import annotations

import shutil

import msgspec
import pytest
from samples import click_job

from satrap import checkpoint
from satrap.checkpoint.export import export
from satrap.errors import StoreError
from satrap.schema import Checkpointing, Cold, Store
from satrap.testing import Cluster
from satrap.train import Trainer

MEMORY = {"user": Cold(memory_rows=8), "tags": Cold(memory_rows=4, evict="frequency"), "history": Cold(memory_rows=4)}


def cold(job, tmp_path):
    """A few rows of each table in memory: less than a batch names."""
    tables = tuple(msgspec.structs.replace(t, cold=MEMORY[t.name]) for t in job.tables)
    return msgspec.structs.replace(job, tables=tables, store=Store(partitions=4, threads=1, cold_folder=str(tmp_path)))


def fit(job, run_dir, **options):
    result = Trainer(job, run_dir=run_dir, progress=False, plots=False, **options).fit(resume=run_dir.exists())
    return result, checkpoint.digest(result.checkpoint)


@pytest.mark.parametrize("staleness", [0, 3])
def test_a_job_with_a_tiny_memory_trains_to_the_bits_of_one_that_holds_all_rows(tmp_path, staleness):
    # A row that came back without its state or version, a gradient that found its row gone, or one applied to a row
    # made anew would each give another digest.
    plain = click_job(tmp_path, staleness=staleness, epochs=2, checkpoint=Checkpointing(every_steps=7, keep=99))
    plain = msgspec.structs.replace(plain, store=Store(partitions=4, threads=1))
    whole, expected = fit(plain, tmp_path / "plain")
    job = cold(plain, tmp_path)
    result, digest = fit(job, tmp_path / "cold")
    assert digest == expected
    assert result.valid == whole.valid
    assert result.gradients == whole.gradients
    assert (result.staleness_mean, result.staleness_max) == (whole.staleness_mean, whole.staleness_max)
    for name, stats in result.tables.items():
        assert stats.rows == whole.tables[name].rows
        assert stats.cold is not None
        assert stats.cold.returned > 0
        assert stats.cold.rows >= stats.rows - MEMORY[name].memory_rows - 200

    # Resumed at a checkpoint, with and without a cold tier; and on servers.
    for name, other in (("resumed", job), ("warmed", plain)):
        shutil.copytree(tmp_path / "cold", tmp_path / name)
        for path in checkpoint.checkpoints(tmp_path / name):
            if int(path.name[5:]) > 14:
                shutil.rmtree(path)
        assert fit(other, tmp_path / name)[1] == expected
    for servers in (1, 3):
        with Cluster(job.resolved_tables(), servers=servers, partitions=4, seed=job.seed) as cluster:
            assert fit(job, tmp_path / f"s{servers}", service=cluster.connect())[1] == expected
    export(result.checkpoint, tmp_path / "rows")
    export(whole.checkpoint, tmp_path / "plain-rows")
    for file in sorted((tmp_path / "plain-rows").rglob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "rows" / file.relative_to(tmp_path / "plain-rows")).read_bytes()


def test_a_folder_for_cold_rows_that_is_not_there_is_named(tmp_path):
    job = cold(click_job(tmp_path), tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"cold rows of table .*/nowhere \(store.cold_folder\): No such file"):
        fit(job, tmp_path / "run")
