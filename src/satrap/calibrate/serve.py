"""A parameter server in a process of its own that tells what CPU it has used.

`python -m satrap.calibrate.serve JOB.YAML INDEX THREADS` prints its address, then for each line that it reads its
CPU-seconds, and ends when its input does.
"""

from __future__ import annotations

import sys
from time import process_time


def main(argv: list[str]) -> int:
    """Serves the tables of a job until its input ends."""
    from satrap.ps import Server
    from satrap.schema import load_job

    job = load_job(argv[0])
    index, threads = int(argv[1]), int(argv[2]) or None
    server = Server(job.resolved_tables(), seed=job.seed, partitions=job.store.partitions, index=index, threads=threads)
    with server:
        print(server.address, flush=True)
        for _ in sys.stdin:
            print(process_time(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
