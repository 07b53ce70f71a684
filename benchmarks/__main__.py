"""`python -m benchmarks NAME [options]`: runs one benchmark.

`--smoke` runs it in seconds, at sizes that prove nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module

BENCHMARKS = {
    "store": "lookup and update of the native store against a raw gather, EmbeddingBag and FBGEMM",
    "train": "click training from Parquet on disk against plain torch and TorchRec",
    "wire": "pulls and pushes over loopback against an echo of the same bytes and the store itself",
    "first-auc": "a fresh copy of the repository, `make demo`, and the time to the first test AUC",
}


def main(argv: list[str]) -> int:
    """Runs the benchmark named first in `argv`; returns the exit status."""
    if not argv or argv[0] not in BENCHMARKS:
        print("usage: python -m benchmarks NAME [--smoke] [options]\n", file=sys.stderr)
        for name, what in BENCHMARKS.items():
            print(f"  {name:10} {what}", file=sys.stderr)
        return 2
    module = import_module(f"benchmarks.{argv[0].replace('-', '_')}")
    status: int = module.main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
