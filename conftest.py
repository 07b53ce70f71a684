"""How the tests are divided, with `-n`, among processes, and in which order they come."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported, which many tests do before satrap: threads that spin would take the other process's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell starts its background jobs with the signal ignored, and so would be all commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A conftest.py holds no doctests, and several of one name cannot be collected as modules.
collect_ignore_glob = ["*/conftest.py"]

# An example may take as long as a busy machine needs for it. In CI hypothesis sees to it by itself.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if "CI" not in os.environ:
    settings.load_profile("patient")

TOGETHER = "tests/launch/"
"""Tests that share a Ray cluster, and wait more than they compute: one process has them all, from the start on."""
LONG = (
    "tests/rehearse/", "tests/benchmarks/", "tests/ps/test_history_crashes.py", "tests/ps/test_killed_servers.py",
    "tests/train/test_training_on_servers.py", "tests/examples/", "tests/docs/",
)  # fmt: skip
"""Files that take a minute or so come next, the longest first: at the end no process has one of them to itself."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of `TOGETHER` come first, then `LONG` ones."""
    order = (TOGETHER, *LONG)
    items.sort(key=lambda i: next((n for n, s in enumerate(order) if i.nodeid.startswith(s)), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file go to one process, for their fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER if nodeid.startswith(TOGETHER) else nodeid.partition("::")[0]

    return Files(config, log)
