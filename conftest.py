"""How the tests are divided, with `-n`, among processes, and in which order they come."""

from __future__ import annotations

import os
from typing import Any

import pytest

# Before torch is imported, which many tests do before satrap: threads that spin would take the other process's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A conftest.py holds no doctests, and several of one name cannot be collected as modules.
collect_ignore_glob = ["*/conftest.py"]

TOGETHER = "tests/launch/"
"""Tests that share a Ray cluster, and wait more than they compute: one process has them all, from the start on."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of `TOGETHER` come first."""
    items.sort(key=lambda item: not item.nodeid.startswith(TOGETHER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file go to one process, for their fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER if nodeid.startswith(TOGETHER) else nodeid.partition("::")[0]

    return Files(config, log)
