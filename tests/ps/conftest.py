"""Every test that asks for `deploy`, `service` or `doors` runs once for each implementation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from deployments import DEPLOYMENTS, Deploy, Open, exact

from satrap.schema import Table


@pytest.fixture(params=DEPLOYMENTS)
def deploy(request: pytest.FixtureRequest) -> Iterator[Deploy]:
    """Starts rows for these tables and gives the doors to them, by client."""
    with ExitStack() as stack:

        def start(tables: Sequence[Table], partitions: int = 8) -> Open:
            return stack.enter_context(DEPLOYMENTS[request.param](tables, partitions))

        yield start


@pytest.fixture
def doors(deploy: Deploy) -> Open:
    """Doors to one exact table `t` of dim 2."""
    return deploy([exact()])


@pytest.fixture
def service(doors: Open) -> Any:
    """The service as client 0 sees it."""
    return doors(0)
