"""`python -m benchmarks NAME [options]`: runs one benchmark.

`--smoke` runs it in seconds, at sizes that prove nothing.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module

BENCHMARKS = {
    "store": "lookup and update of the native store against a raw gather, EmbeddingBag and FBGEMM",
    "train": "click training from Parquet on disk against plain torch and TorchRec; with --servers, on servers",
    "peers": "satrap beside plain torch, TorchRec and the original Persia: all that each of them costs",
    "modes": "test AUC of synchronous, hybrid and asynchronous training, over paired seeds; what staleness costs",
    "durability": "training with and without a journal, snapshot and recovery rates, a killed server",
    "formats": "bytes a row of each row format against the planner's, and its lookups and updates against fp32's",
    "capacity": "the largest table that fills and trains in memory, and lookups and updates against its size",
    "cold": "a table of which four fifths lie on disk against one of a million rows, and what the disk has to do",
    "plan": "what `satrap plan` predicts of this machine against what it does",
    "wire": "pulls and pushes over loopback against an echo of the same bytes and the store itself",
    "pooling": "an NN worker's bytes and CPU with and without an embedding worker",
    "figures": "the pictures of the performance page, drawn anew from docs/figures/*.jsonl",
    "first-auc": "a fresh copy of the repository, `make demo`, and the time to the first test AUC",
}


def main(argv: list[str]) -> int:
    """Runs the benchmark named first in `argv`; returns the exit status."""
    if not argv or argv[0] not in BENCHMARKS:
        print("usage: python -m benchmarks NAME [--smoke] [options]\n", file=sys.stderr)
        for name, what in BENCHMARKS.items():
            print(f"  {name:10} {what}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started is ended
    module = import_module(f"benchmarks.{argv[0].replace('-', '_')}")
    status: int = module.main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
