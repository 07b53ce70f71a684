"""A Ray Data dataset as the data of a job: like files, whose positions are exact."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from launched import ADULT, LIMIT_S, digest

from satrap.data import Reader
from satrap.data.ray_blocks import publish
from satrap.errors import DataError
from satrap.schema import Categorical, Data, Job, Label, Numeric, Train

pytest.importorskip("ray.data")
pytestmark = pytest.mark.slow

ROWS = 1000


@pytest.fixture(scope="module")
def ray(cluster: str) -> Iterator[Any]:
    import ray

    ray.init(address=cluster, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


def dataset(ray: Any, seed: int = 0) -> Any:
    """Five blocks of 200 rows, each changed by a function of the user's."""
    user = np.random.default_rng(seed).integers(0, 50, ROWS)
    table = pa.table({"user": user, "x": np.arange(ROWS, dtype=np.float32), "click": user % 2})

    def twice(block: pa.Table) -> pa.Table:
        return block.set_column(1, "x", pa.array(block["x"].to_numpy() * 2))

    return ray.data.from_arrow([table.slice(i, 200) for i in range(0, ROWS, 200)]).map_batches(
        twice, batch_format="pyarrow", batch_size=None
    )


def job(path: str, **data: Any) -> Job:
    return Job(
        data=Data(train=(path,), label=(Label(column="click"),), valid=0.0, **data),
        features=(Categorical(name="user"), Numeric(name="x")),
        train=Train(batch_size=64),
    )


def read(path: str, shuffle: bool, **options: Any) -> list[Any]:
    reader = Reader(job(path, shuffle_rows=300 if shuffle else 0), (path,), seed=1, shuffle=shuffle, **options)
    return list(reader.epoch())


def test_every_row_comes_once_and_in_the_order_of_the_dataset_where_nothing_is_shuffled(ray: Any) -> None:
    batches = read(publish(dataset(ray), "in-order"), shuffle=False)
    assert [b.numeric[:, 0].tolist() for b in batches] == [
        [2.0 * i for i in range(a, min(a + 64, ROWS))] for a in range(0, ROWS, 64)
    ]


def test_workers_share_the_blocks_without_a_row_left_out_or_used_twice(ray: Any) -> None:
    path = publish(dataset(ray), "shared")
    seen = [x for rank in range(3) for b in read(path, True, shard=(rank, 3)) for x in b.numeric[:, 0].tolist()]
    assert sorted(seen) == [2.0 * i for i in range(ROWS)]


def test_a_position_leads_back_to_the_batches_that_followed_it_also_after_it_is_published_anew(ray: Any) -> None:
    path = publish(dataset(ray), "again")
    whole = read(path, True)
    reader = Reader(job(path, shuffle_rows=300), (path,), seed=1, shuffle=True)
    fingerprint = reader.fingerprint
    publish(dataset(ray), "again")
    anew = Reader(job(path, shuffle_rows=300), (path,), seed=1, shuffle=True)
    anew.check_fingerprint(fingerprint, between_epochs=False)
    rest = list(anew.epoch(0, whole[4].position))
    assert [b.numeric.tolist() for b in rest] == [b.numeric.tolist() for b in whole[5:]]


def test_a_dataset_of_other_blocks_is_refused_where_a_position_is_to_be_found_again(ray: Any) -> None:
    path = publish(dataset(ray), "changed")
    saved = Reader(job(path), (path,), seed=1, shuffle=True).fingerprint
    publish(dataset(ray).repartition(3), "changed")
    with pytest.raises(DataError, match="had 5 files when the position was saved and has 3 now"):
        Reader(job(path), (path,), seed=1, shuffle=True).check_fingerprint(saved, between_epochs=False)


def test_what_cannot_be_read_is_one_message(ray: Any) -> None:
    with pytest.raises(DataError, match="no dataset of this name is published on this Ray cluster"):
        read("raydata://nothing", shuffle=False)
    with pytest.raises(DataError, match="has no rows"):
        publish(dataset(ray).filter(lambda row: False), "empty")
    with pytest.raises(DataError, match="is no name"):
        publish(dataset(ray), "a/b")


def test_a_job_on_a_dataset_trains_the_model_of_the_same_rows_in_files(cluster: str, tmp_path: Path) -> None:
    script = f"""
    import ray, pyarrow.parquet as pq
    from pathlib import Path
    from satrap.launch import run
    from satrap.data.ray_blocks import publish
    from satrap.schema import load_job, override

    def main():
        ray.init(address="{cluster}", log_to_driver=False)
        table = pq.read_table("{ADULT}/train.parquet")
        blocks = [table.slice(i, 4000) for i in range(0, table.num_rows, 4000)]
        path = publish(ray.data.from_arrow(blocks), "adult")
        job = override(load_job("{ADULT}/job.yaml"), [
            "data.test=[]", "train.threads=1", "train.max_steps=60", "train.staleness=0"])
        for name, data in (("dataset", path), ("files", "{tmp_path}/blocks")):
            run(override(job, [f"data.train={{data}}"]), servers=1, workers=2, run_dir=f"{tmp_path}/{{name}}",
                progress=False, plots=False)
        assert ray.is_initialized()  # it is the user's, and stays

    main()
    """
    (tmp_path / "blocks").mkdir()
    table = pq.read_table(ADULT / "train.parquet")
    for i in range(0, table.num_rows, 4000):
        block = table.slice(i, 4000).replace_schema_metadata(None)
        pq.write_table(block, tmp_path / "blocks" / f"{i:06d}.parquet", row_group_size=4000)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert digest(tmp_path / "dataset") == digest(tmp_path / "files")
