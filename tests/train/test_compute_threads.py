"""A whole run on one compute thread and on two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from satrap.checkpoint import digest
from satrap.schema import DLRM, MLP, Adam, Categorical, Data, DCNv2, Job, Label, ModelSpec, Numeric, Store, Train
from satrap.train import Trainer

ROWS, BATCH = 9000, 4096
"""Two batches that torch shares out among threads, and a small one."""

MODELS: dict[str, ModelSpec] = {
    "batch norm": MLP(hidden=(64, 32), norm="batch", dropout=0.2),
    "layer norm": MLP(hidden=(64, 32), norm="layer", numeric_hidden=(16,)),
    "dlrm": DLRM(),
    "cross": DCNv2(low_rank=32, structure="stacked"),
}


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "clicks.parquet"
    columns: dict[str, object] = {f"c{i}": rng.zipf(1.2, ROWS) % 1000 for i in range(8)}
    columns |= {f"x{i}": rng.standard_normal(ROWS).astype(np.float32) for i in range(13)}
    columns["click"] = (rng.random(ROWS) < 0.3).astype(np.int64)
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_same_seed_gives_the_same_bits_on_one_and_two_threads(
    clicks: str, tmp_path: Path, model: str, precision: str
) -> None:
    # Sums over samples were cut among the threads: in norms, and in bf16 in the gradients of small weights.
    digests = set()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            job = Job(
                data=Data(train=(clicks,), label=(Label(column="click"),), valid=0.0),
                features=(*(Categorical(name=f"c{i}") for i in range(8)), *(Numeric(name=f"x{i}") for i in range(13))),
                model=MODELS[model],
                train=Train(
                    batch_size=BATCH, precision=precision, threads=threads, optimizer=Adam(lr=0.01), clip_norm=1.0
                ),
                store=Store(partitions=4, threads=threads),
            )
            result = Trainer(job, run_dir=tmp_path / str(threads), progress=False, plots=False).fit()
            assert result.checkpoint is not None
            digests.add(digest(result.checkpoint))
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1
