"""FBGEMM's CPU embedding kernel as a worker: told over its standard input which operation to run, answers with a meter.

Lines in: `lookup` (forward) or `step` (forward, backward with the fused row-wise Adagrad), each over all batches once.
Lines out: a JSON object, the first when ready.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from dataclasses import asdict

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import fbgemm_gpu  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from fbgemm_gpu.split_embedding_configs import SparseType  # noqa: E402
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (  # noqa: E402
    ComputeDevice,
    EmbeddingLocation,
    OptimType,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from benchmarks.harness import Meter  # noqa: E402


def main(argv: list[str]) -> int:
    """Serves until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--rows", "--dim", "--threads"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--format", choices=["fp32", "fp16"], required=True)
    parser.add_argument("--batches", required=True, help=".npy of row numbers, int64 [batches, batch]")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(options.rows, options.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.02,
        eps=1e-8,
        weights_precision={"fp32": SparseType.FP32, "fp16": SparseType.FP16}[options.format],
        output_dtype=SparseType.FP32,
        pooling_mode=PoolingMode.SUM,
        stochastic_rounding=False,
    )
    with torch.no_grad():
        kernel.weights_host.fill_(0.01)
    batches = torch.from_numpy(np.load(options.batches))
    offsets = torch.arange(batches.shape[1] + 1)
    gradient = torch.full((batches.shape[1], options.dim), 1e-3)

    def lookup() -> None:
        with torch.no_grad():
            for batch in batches:
                kernel(batch, offsets)

    def step() -> None:
        for batch in batches:
            kernel(batch, offsets).backward(gradient)

    print(json.dumps({"ready": True, "fbgemm": fbgemm_gpu.__version__}), flush=True)
    for line in sys.stdin:
        meter = Meter()
        {"lookup": lookup, "step": step}[line.strip()]()
        print(json.dumps(asdict(meter.read())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
