"""The cluster of tests: servers that stop and come back at the address clients know."""

from __future__ import annotations

import numpy as np
import pytest

from satrap.ps import PullRequest
from satrap.schema import SGD, Table
from satrap.testing import Cluster, Faults

TABLES = [Table(name="t", dim=2, optimizer=SGD(lr=1.0))]
IDS = {"t": np.arange(64, dtype=np.uint64)}


@pytest.mark.parametrize("faults", [None, Faults()])
def test_a_restarted_server_is_found_where_it_was_with_the_rows_it_is_given(faults: Faults | None) -> None:
    with Cluster(TABLES, servers=3, faults=faults) as cluster:
        client = cluster.connect()
        before = client.pull(PullRequest(ids=IDS, create=True)).values["t"].copy()
        for server in range(3):
            cluster.restart(server, cluster.stop(server))
        np.testing.assert_array_equal(client.pull(PullRequest(ids=IDS, create=False)).values["t"], before)
        assert client.stats()["t"].rows == 64


def test_a_cluster_closes_its_clients_proxies_and_servers() -> None:
    cluster = Cluster(TABLES, servers=2, faults=Faults())
    cluster.connect().stats()
    cluster.close()
    for server in cluster.servers:
        server.stop()  # a second time does nothing
    for proxy in cluster.proxies:
        assert not proxy._thread.is_alive()
