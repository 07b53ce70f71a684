"""A host with a server on it is lost in the middle of a run; the server comes back on another one.

    python tests/launch/lost_host.py

Three hosts (see `hosts.py`; it needs root): workers and driver on one, servers on two, and the run folder on storage
that all of them see. The run must end without going back to a checkpoint, with the model of a run that nothing happened
to. Not one of the tests that always run: three Ray nodes take their time to start.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from hosts import Network, why_not
from launched import LIMIT_S, SYNCHRONOUS, Running, digest, train

from satrap.ps import Keys

SOON = {
    "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_initial_delay_ms": "0",
}  # fmt: skip
"""Ray notices within seconds that a node is gone."""


def main() -> int:
    reason = why_not()
    if reason is not None:
        print(reason)
        return 1
    with tempfile.TemporaryDirectory(prefix="satrap-lost-") as name:
        folder = Path(name)
        Keys.new().save(folder / "keys")
        train(folder / "whole", *SYNCHRONOUS, "--servers", "1", "--workers", "1")
        network = Network(folder, hosts=3, memory=(1, 2))
        network.env |= SOON
        with network:
            words = [
                *SYNCHRONOUS, "--servers", "2", "--workers", "1", "--address", network.address,
                "--keys", str(folder / "keys"), "--server-deadline", "90", "store.durability=process",
            ]  # fmt: skip
            with Running(folder / "run", words, env=network.env, prefix=network.hosts[0].prefix) as run:
                run.says("first step")
                network.hosts[1].end()
                begun = time.monotonic()
                run.says(f"is on {network.hosts[2].ip} now")
                waited = time.monotonic() - begun
                assert run.process.wait(LIMIT_S) == 0, run.text[-4000:]
            assert not run.restarts()
            assert digest(run.run) == digest(folder / "whole")
            print(f"back on another host {waited:.1f} s after its own was lost; the model is the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
