"""The planner: how much memory, how many machines, at what cost, how fast, and what is in the way.

Owns: bytes a row, network bytes a sample, failures and snapshots, the simulation of the pipeline, cluster files, price
lists and the file of measured constants. Every formula is explained in `docs/capacity.md`.
May import: schema, observe, errors. Must never: import torch or the store, open a socket, look at this machine.
"""

from satrap.plan.cluster import Cluster, Group, Prices, load_cluster, load_prices
from satrap.plan.constants import Constants, load_constants, save_constants
from satrap.plan.layout import Bounds, RowBytes, bounds_of, row_bytes
from satrap.plan.planning import Plan, make_plan
from satrap.plan.workload import TableLoad, Workload, quantity, target, workload_of

__all__ = [
    "Bounds",
    "Cluster",
    "Constants",
    "Group",
    "Plan",
    "Prices",
    "RowBytes",
    "TableLoad",
    "Workload",
    "bounds_of",
    "load_cluster",
    "load_constants",
    "load_prices",
    "make_plan",
    "quantity",
    "row_bytes",
    "save_constants",
    "target",
    "workload_of",
]
