"""satrap, through `Trainer.fit`, as a program of its own: `python -m benchmarks.satrap_side`. Prints one JSON line.

The same network, rows, order and optimizers as the peers', but from Parquet files with hashed ids: reading, decoding,
finding rows, and all that a run does beside (metrics, log, gradient norm) is in the figures. `--read-only` drains the
reader instead of training: decoding alone. `--servers` trains on rows that `benchmarks.server_side` holds,
`--pooler` with an embedding worker before them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Meter, peak_rss_mib
from benchmarks.peers.loop import DENSE_LR, EMBEDDING_EPS, EMBEDDING_LR, Metered, arguments, pin
from benchmarks.synthetic import CATEGORICAL, NUMERIC
from satrap import checkpoint, models
from satrap.data import Reader
from satrap.models import Named
from satrap.pooling import Plan, RemotePooler
from satrap.ps import Placement, RemoteService
from satrap.schema import (
    MLP,
    Adam,
    Categorical,
    Custom,
    Data,
    Job,
    Label,
    Numeric,
    RowWiseAdagrad,
    Table,
    Train,
    WireFormat,
    save_job,
)
from satrap.schema import Store as StoreSpec
from satrap.train import Trainer

LOG_EVERY_STEPS = 16


class Sum(nn.Module):
    """The embedding path alone: the logit is the sum of every pooled value, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        """Logits [B]."""
        return embeddings.cat().sum(dim=1) + self.bias


class Watched(nn.Module):
    """The network, telling the meter of every training step."""

    def __init__(self, inner: nn.Module, metered: Metered, batch: int) -> None:
        super().__init__()
        self.inner = inner
        self._metered, self._batch = metered, batch
        self._samples, self._one = 0, threading.Lock()

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        """Logits, as the network's. A batch may come in parts, on threads of their own."""
        if self.training:
            with self._one:
                if self._samples % self._batch == 0:
                    self._metered.begin_step()
                self._samples += embeddings.cat().shape[0]
        logits: Tensor = self.inner(numeric, embeddings)
        return logits


def main(argv: list[str]) -> int:
    """Trains (or reads), prints one JSON line."""
    options = job_arguments((__doc__ or "").split("\n")[0]).parse_args(argv)
    pin(options.cores)
    job = make_job(options)
    if options.write_job:
        save_job(job, options.write_job)
        print(json.dumps({"job": options.write_job}), flush=True)
        return 0
    answer = _read(job, options) if options.read_only else _train(job, options)
    side = "satrap reader" if options.read_only else "satrap"
    print(json.dumps({"side": side, "torch": torch.__version__, **answer}), flush=True)
    return 0


def job_arguments(description: str) -> argparse.ArgumentParser:
    """The options that make the job, and how it is run."""
    parser = arguments(description)
    parser.add_argument("--store-threads", type=int, default=None)
    parser.add_argument("--staleness", type=int, default=8)
    parser.add_argument("--dense-mode", choices=("sync", "async"), default="sync")
    parser.add_argument("--shuffle-rows", type=int, default=0)
    parser.add_argument("--wire", choices=[f.value for f in WireFormat], default="fp32")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--write-job", default="", help="writes the job to this file, and trains nothing")
    parser.add_argument("--servers", type=lambda s: s.split(","), default=[], help="addresses; none: rows in here")
    parser.add_argument("--pooler", default="", help="address of an embedding worker before the servers")
    parser.add_argument("--count", type=_numbers, default=[], help="pids that are metered too")
    parser.add_argument("--known", type=_numbers, default=[], help="pids whose CPU time is told and does not count")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def make_job(options: argparse.Namespace) -> Job:
    """The job of these options; `options.arrays` lies in the folder of the Parquet files."""
    folder: Path = options.arrays.parent
    rows = Adam(lr=DENSE_LR) if options.optimizer == "adam" else RowWiseAdagrad(lr=EMBEDDING_LR, eps=EMBEDDING_EPS)
    sum_alone = Custom(path="benchmarks.satrap_side:Sum")
    deep = MLP(hidden=(256, 64), numeric_hidden=(64,) if options.model == "deep" else ())
    return Job(
        data=Data(
            train=tuple(str(p) for p in sorted(folder.glob("train-*.parquet"))),
            test=tuple(str(p) for p in sorted(folder.glob("test-*.parquet"))),
            label=(Label(column="label"),),
            valid=0.0,
            shuffle_rows=options.shuffle_rows,
        ),
        features=(*(Numeric(name=n) for n in NUMERIC), *(Categorical(name=n) for n in CATEGORICAL)),
        tables=tuple(Table(name=n, dim=16, wire=WireFormat(options.wire)) for n in CATEGORICAL),
        model=sum_alone if options.model == "sum" else deep,
        train=Train(
            batch_size=options.batch,
            max_steps=options.steps,
            optimizer=Adam(lr=DENSE_LR),
            embedding_optimizer=rows,
            staleness=options.staleness,
            dense_mode=options.dense_mode,
            precision=options.precision,
            threads=options.threads or None,
            device="cpu",
            log_every_steps=LOG_EVERY_STEPS,
        ),
        store=StoreSpec(threads=options.store_threads or options.threads or None),
        seed=options.seed,
    )


def _train(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    metered = Metered(
        batch=options.batch,
        warm_steps=options.warm_steps,
        metered_steps=options.metered_steps,
        others=options.count,
        known=options.known,
    )
    torch.manual_seed(job.seed)
    network = models.build(job)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        service, pooler = None, None
        if options.servers:
            service = stack.enter_context(RemoteService.of(job, Placement.even(options.servers, job.store.partitions)))
        if options.pooler:
            pooler = RemotePooler(Plan.of(job), options.pooler)
            stack.callback(pooler.close)
        trainer = Trainer(
            job,
            Watched(network, metered, options.batch),
            run_dir=Path(folder) / "run",
            service=service,
            pooler=pooler,
            progress=False,
            plots=False,
        )
        result = trainer.fit()
        assert result.test is not None
        assert result.checkpoint is not None
        assert metered.figures is not None
        return {
            **metered.figures,
            "test_auc": result.test.auc,
            "rows": result.rows,
            "bytes_per_row": result.size.bytes_per_row,
            "staleness_mean": result.staleness_mean,
            "stages_s": result.stages.as_dict(),
            "digest": checkpoint.digest(result.checkpoint),
        }


def _read(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    meter = Meter()  # of the whole epoch, from opening the files on: a reader works ahead of the one who takes
    reader = Reader(job, job.data.train, seed=job.seed, shuffle=options.shuffle_rows > 0)
    with closing(reader.epoch()) as batches:
        samples = sum(b.size for b in batches)
    reading = meter.read()
    return {
        "samples": samples,
        "samples_per_s": samples / reading.wall_s,
        "cpu_s_per_million": reading.cpu_s / samples * 1e6,
        "other_cores": reading.other_cores,
        "steal_cores": reading.steal_cores,
        "peak_rss_mib": peak_rss_mib(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
