"""The server that `python -m benchmarks durability` kills: a process that imports what a server of a job does, and no
more, since its start is part of what is measured.

    python -m benchmarks.durability_server FOLDER ADDRESS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from satrap.ps import Keeping, Server
from satrap.schema import RowWiseAdagrad, Table

TABLE = Table(name="t", dim=32, optimizer=RowWiseAdagrad(lr=0.02))
OPTIONS: dict[str, Any] = {"seed": 3, "partitions": 64}


def main(folder: Path, bind: str) -> int:
    """Prints its address and what it has brought back, and serves until it is ended."""
    server = Server([TABLE], **OPTIONS, bind=bind, keeping=Keeping(folder=folder))
    back = server.recovered
    assert back is not None
    found = {k: getattr(back, k) for k in ("seconds", "journal_bytes", "snapshot_bytes")}
    print(json.dumps({"address": server.address, "recovered": found}), flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
