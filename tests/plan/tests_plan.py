"""Constants, clusters and workloads that tests plan with: round numbers, so that answers can be worked out by hand."""

from __future__ import annotations

from typing import Any

from satrap.plan import Cluster, Constants
from satrap.plan.cluster import cluster_from_dict
from satrap.plan.constants import DiskCost, JobCost, LegCost, MeasuredOn, RowCost, TableSeen, WireCost


def leg(message_us: float = 100.0, row_ns: float = 20.0) -> LegCost:
    """The same cost divided or not."""
    return LegCost(
        message_us=message_us,
        table_us=0.0,
        row_ns=row_ns,
        divided_message_us=message_us,
        divided_table_us=0.0,
        divided_row_ns=row_ns,
    )


def constants(job: JobCost | None = None) -> Constants:
    """Of a machine that was never measured."""
    return Constants(
        machine=MeasuredOn(date="2026-01-01", cpu="test", cores=2, memory_gib=24, satrap="0"),
        rows=(
            RowCost(dim=16, format="fp32", rows=10**7, lookup_ns=40, update_ns=60),
            RowCost(dim=128, format="fp32", rows=10**7, lookup_ns=160, update_ns=240),
        ),
        wire=WireCost(
            pull_client=leg(), pull_server=leg(), push_client=leg(), push_server=leg(), bytes_per_row=73, byte_ns=0.1
        ),
        disk=DiskCost(read_gib_s=1.0, write_gib_s=0.5),
        job=job,
    )


def measured(name: str, tables: tuple[TableSeen, ...], **changes: Any) -> JobCost:
    """A job that was measured: 1 µs a sample for each stage, 4 for the network on two threads."""
    costs = dict.fromkeys(("read_us", "prepare_us", "pull_us", "pool_us", "step_us", "unpool_us", "push_us"), 1.0)
    figures: dict[str, Any] = {
        **costs,
        "batch_size": 4096,
        "samples": 10**6,
        "dense_us": 4.0,
        "dense_wall_us": 2.0,
        "dense_threads": 2,
        "dense_parameters": 10**5,
        **changes,
    }
    return JobCost(name=name, tables=tables, **figures)


def cluster(**changes: Any) -> Cluster:
    """Machines of 1 TiB and 16 cores for servers, of one GPU for workers."""
    return cluster_from_dict(
        {
            "name": "test",
            "servers": {"machine": "memory"},
            "workers": {"machine": "gpu", "count": 2},
            "machines": {
                "memory": {"cores": 16, "memory_gib": 1024, "network_gbit": 32, "dollars_per_hour": 10},
                "gpu": {
                    "cores": 12,
                    "memory_gib": 85,
                    "network_gbit": 24,
                    "gpus": 1,
                    "gpu": "g",
                    "gpu_tflops": 40,
                    "dollars_per_hour": 4,
                    "spot_dollars_per_hour": 1,
                },
                "disk": {"cores": 88, "memory_gib": 704, "network_gbit": 62, "ssd_gib": 36000, "dollars_per_hour": 11},
            },
            **changes,
        }
    )
