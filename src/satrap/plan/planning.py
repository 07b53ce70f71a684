"""A plan: from a workload, a cluster, prices and constants to machines, cost, bytes, time and what is in the way.

The formulas are those of `docs/capacity.md`, in its order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from satrap.errors import JobError
from satrap.plan.cluster import Cluster, Group, Machine, Prices, machine_of, price_of
from satrap.plan.constants import Constants
from satrap.plan.costs import StepCosts, step_costs
from satrap.plan.layout import COLD_INDEX_BYTES, ROWS_PER_PARTITION_MAX, RowBytes, is_built, row_bytes
from satrap.plan.network import Legs
from satrap.plan.risk import (
    chance_imbalance,
    daly_interval_s,
    expected_collisions,
    partition_imbalance,
    partitions_needed,
    useful_share,
    young_interval_s,
)
from satrap.plan.simulation import Layout, Node, Simulated, one_machine, simulate
from satrap.plan.workload import TableLoad, Workload

GIB = 2**30
FEW_SERVERS = 4
"""So many are simulated one by one."""
ALL = "servers and workers"
"""Name of the group where one machine is for all."""


@dataclass(frozen=True, slots=True)
class TablePlan:
    """A table."""

    load: TableLoad
    bytes: RowBytes
    """A row, mean."""
    worst: RowBytes
    """A row, with the index as empty as it gets: what memory is asked for."""

    @property
    def built(self) -> bool:
        """Whether tables can be stored so today."""
        return is_built(self.load.row_format)


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """Machines that hold the rows."""

    kind: str
    machine: Machine
    count: int
    processes: int
    """Servers on each."""
    memory_bytes: float
    """That rows take in the fullest one, at most."""
    ssd_bytes: float
    """Likewise. 0 where all rows are in memory."""
    memory_limit: float
    ssd_limit: float
    dollars_per_hour: float
    """Of all of them."""
    tiered: bool = False

    @property
    def fits(self) -> bool:
        """Whether the rows find room."""
        return self.memory_bytes <= self.memory_limit and self.ssd_bytes <= self.ssd_limit


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Machines for one purpose."""

    name: str
    """As in the cluster file; of one machine for all, `ALL`."""
    kind: str
    count: int
    spot: bool
    dollars_per_hour: float


@dataclass(frozen=True, slots=True)
class Safety:
    """Snapshots, failures, recovery."""

    bytes_per_server: float
    snapshot_s: float
    recovery_s: float
    """From the failure to the first step."""
    mtbf_s: float
    """Of all machines together."""
    young_s: float
    daly_s: float
    """Time of work between snapshots that loses least."""
    useful: float
    """Share of the time that ends up in the model, at that interval."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    workload: Workload
    cluster: Cluster
    tables: tuple[TablePlan, ...]
    servers: ServerPlan
    tiered: ServerPlan | None
    groups: tuple[GroupPlan, ...]
    partitions: int
    """Needed."""
    collisions: float
    row_imbalance: float
    load_imbalance: float
    safety: Safety
    workers: int
    costs: StepCosts
    simulated: Simulated
    notes: tuple[str, ...]

    @property
    def legs(self) -> Legs:
        """Bytes of one worker's step."""
        return self.costs.legs

    @property
    def rows(self) -> float:
        """Materialised, of all tables."""
        return sum(t.load.rows for t in self.tables)

    @property
    def bytes(self) -> float:
        """Of all rows, mean."""
        return sum(t.load.rows * t.bytes.total for t in self.tables)

    def machines(self, group: str) -> int:
        """Machines of a group: servers, workers or readers."""
        return 1 if self.cluster.one_machine else next(g.count for g in self.groups if g.name == group)

    @property
    def dollars_per_hour(self) -> float:
        """Of all machines."""
        return sum(g.dollars_per_hour for g in self.groups)

    @property
    def server_core_s_per_million(self) -> float:
        """Core-seconds of servers for a million samples."""
        return self.costs.server / self.costs.samples * 1e6 / self.servers.machine.speed

    def gbit_per_s(self, bytes_per_step: float, *, of: int = 1) -> float:
        """Rate of a leg, from the bytes of one worker's step, at the predicted throughput; over so many machines."""
        steps = self.simulated.samples_per_s / self.costs.samples
        return bytes_per_step * steps * 8 / 1e9 / of


def make_plan(
    workload: Workload,
    cluster: Cluster,
    constants: Constants,
    prices: Prices | None = None,
    *,
    steps: int = 60,
    pooling_built: bool = False,
) -> Plan:
    """Plans. `steps` are simulated; `pooling_built`: this satrap has processes that pool for workers.

    Raises JobError where a machine is not known, or nothing says what something costs.
    """
    machines = _counted(cluster, prices)
    servers_machine = machine_of(cluster.servers.machine, cluster, prices)
    guess = cluster.servers.count or 1
    partitions = _partitions(workload, guess)
    tables = _tables(workload, partitions)
    servers = _servers(tables, cluster, servers_machine, partitions)
    partitions = _partitions(workload, servers.count * servers.processes)
    tables = _tables(workload, partitions)
    servers = _servers(tables, cluster, servers_machine, partitions)
    workers_machine, workers = machines["workers"]
    per_machine = cluster.workers.processes or max(1, workers_machine.gpus)
    world = workers * per_machine

    def costs_of(processes: int) -> StepCosts:
        return step_costs(
            workload,
            constants,
            servers=servers.count * processes,
            workers=world,
            worker=workers_machine,
            pooling=cluster.pooling,
        )

    measured = constants.job is not None and constants.job.name == workload.name
    overlap = constants.job.overlap if measured and constants.job is not None else 1.0

    def simulated_with(processes: int, steps: int) -> Simulated:
        costs, total = costs_of(processes), servers.count * processes
        uneven = partition_imbalance(_partitions(workload, total), total) * chance_imbalance(costs.rows, total)
        if cluster.one_machine:
            layout = one_machine(
                workers_machine.cores,
                servers=processes,
                workers=world,
                server_threads=workload.store_threads,
                reached=1.0 if workers_machine.gpus else overlap,
                speed=workers_machine.speed,
            )
        else:
            layout = _layout(cluster, machines, servers, processes, world, per_machine, uneven, overlap)
        return simulate(costs, layout, staleness=workload.staleness, steps=steps)

    # Few servers on a machine keep threads idle, many mean many messages: what is not said is tried out.
    per_server_machine = cluster.servers.processes or _fastest(simulated_with, servers_machine.cores)
    costs, simulated = costs_of(per_server_machine), simulated_with(per_server_machine, steps)
    servers = replace(servers, processes=per_server_machine)
    processes = servers.count * per_server_machine
    partitions = _partitions(workload, processes)
    tables = _tables(workload, partitions)
    servers = replace(_servers(tables, cluster, servers_machine, partitions), processes=per_server_machine)
    groups = _groups(cluster, machines, servers, prices)
    total = sum(g.count for g in groups)
    imbalance = partition_imbalance(partitions, processes)
    plan = Plan(
        workload=workload,
        cluster=cluster,
        tables=tables,
        servers=servers,
        tiered=_tiered(tables, cluster, prices, partitions),
        groups=groups,
        partitions=partitions,
        collisions=sum(expected_collisions(t.load.rows) for t in tables if t.load.hashed),
        row_imbalance=imbalance * chance_imbalance(sum(t.load.rows for t in tables), processes),
        load_imbalance=imbalance * chance_imbalance(costs.rows, processes),
        safety=_safety(tables, cluster, constants, servers, total, imbalance),
        workers=world,
        costs=costs,
        simulated=simulated,
        notes=(),
    )
    return replace(plan, notes=_notes(plan, constants, prices, pooling_built))


def _fastest(simulated_with: Callable[[int, int], Simulated], cores: float) -> int:
    """The least number of servers a machine, of powers of two, that more of them do not make faster by 2 %."""
    best, rate = 1, 0.0
    for processes in (1, 2, 4, 8, 16):
        if processes > max(1.0, cores):
            break
        now = simulated_with(processes, 1).samples_per_s
        if now > 1.02 * rate:
            best, rate = processes, now
        elif now < 0.9 * rate:
            break
    return best


def _partitions(workload: Workload, servers: int) -> int:
    largest = max(t.rows for t in workload.tables)
    return max(workload.partitions, partitions_needed(largest, servers, most=ROWS_PER_PARTITION_MAX))


def _tables(workload: Workload, partitions: int) -> tuple[TablePlan, ...]:
    def plan(t: TableLoad) -> TablePlan:
        mean, worst = (
            row_bytes(t.dim, t.row_format, t.optimizer, rows=t.rows, partitions=partitions, worst=w, bounds=t.bounds)
            for w in (False, True)
        )
        return TablePlan(t, mean, worst)

    return tuple(plan(t) for t in workload.tables)


def _servers(tables: tuple[TablePlan, ...], cluster: Cluster, machine: Machine, partitions: int) -> ServerPlan:
    """As many machines as the rows need, at the index's emptiest, on the server with most partitions."""
    total = sum(t.load.rows * t.worst.total for t in tables)
    limit = machine.memory_gib * GIB * cluster.memory_share
    processes = cluster.servers.processes or 1
    fixed = 1 if cluster.one_machine else cluster.servers.count
    count = fixed or max(1, math.ceil(total / limit))
    while fixed is None and total * _fullest(partitions, count, processes) > limit:
        count += 1
    return ServerPlan(
        kind=cluster.servers.machine,
        machine=machine,
        count=count,
        processes=processes,
        memory_bytes=total * _fullest(partitions, count, processes),
        ssd_bytes=0.0,
        memory_limit=limit,
        ssd_limit=machine.ssd_gib * GIB,
        dollars_per_hour=count * price_of(machine, spot=False),
    )


def _fullest(partitions: int, count: int, processes: int) -> float:
    """Share of all rows on the fullest machine."""
    return partition_imbalance(max(partitions, count * processes), count * processes) / count


def _tiered(
    tables: tuple[TablePlan, ...], cluster: Cluster, prices: Prices | None, partitions: int
) -> ServerPlan | None:
    """The hottest rows in memory, and of the others what says where they are; these on SSD, in files at their
    largest."""
    tier = cluster.tiered
    if tier is None:
        return None
    machine = machine_of(tier.machine, cluster, prices)
    if not machine.ssd_gib:
        raise JobError(f"tiered.machine: {tier.machine} has no SSD (ssd_gib)")
    memory = sum(t.load.rows * (tier.hot * (t.worst.total + 1) + (1 - tier.hot) * COLD_INDEX_BYTES) for t in tables)
    ssd = sum(t.load.rows * (1 - tier.hot) * t.worst.on_disk for t in tables)
    limits = machine.memory_gib * GIB * cluster.memory_share, machine.ssd_gib * GIB * 0.95
    count = tier.count or max(1, math.ceil(max(memory / limits[0], ssd / limits[1])))
    return ServerPlan(
        kind=tier.machine,
        machine=machine,
        count=count,
        processes=cluster.servers.processes or 1,
        memory_bytes=memory / count,
        ssd_bytes=ssd / count,
        memory_limit=limits[0],
        ssd_limit=limits[1],
        dollars_per_hour=count * price_of(machine, spot=False),
        tiered=True,
    )


def _counted(cluster: Cluster, prices: Prices | None) -> dict[str, tuple[Machine, int]]:
    return {
        name: (machine_of(g.machine, cluster, prices), g.count or 1)
        for name, g in cluster.groups().items()
        if name != "servers"
    }


def _groups(
    cluster: Cluster, machines: dict[str, tuple[Machine, int]], servers: ServerPlan, prices: Prices | None
) -> tuple[GroupPlan, ...]:
    def group(name: str, spec: Group, machine: Machine, count: int) -> GroupPlan:
        return GroupPlan(name, spec.machine, count, spec.spot, count * price_of(machine, spot=spec.spot))

    if cluster.one_machine:
        return (group(ALL, cluster.servers, servers.machine, 1),)
    out = [group("servers", cluster.servers, servers.machine, servers.count)]
    out += [group(n, cluster.groups()[n], m, c) for n, (m, c) in machines.items()]
    if cluster.head is not None:
        head = machine_of(cluster.head.machine, cluster, prices)
        out.append(group("head", cluster.head, head, 1))
    return tuple(out)


def _layout(
    cluster: Cluster,
    machines: dict[str, tuple[Machine, int]],
    servers: ServerPlan,
    processes: int,
    world: int,
    per_machine: int,
    uneven: float,
    overlap: float,
) -> Layout:
    """Servers first, then workers, then readers; machines of one kind are alike. Many servers are simulated by one, the
    busiest: every batch goes to all, so all do the same at the same time. `overlap`: of the cores of workers without
    GPUs, the share that is used."""
    worker_machine, workers = machines["workers"]
    # One machine for all, as on a laptop, where servers and workers name the same kind and there is one of each.
    alone = servers.count == workers == 1 and cluster.servers.machine == cluster.workers.machine and not cluster.readers
    total = servers.count * processes
    few = total <= FEW_SERVERS or alone
    used = 1.0 if worker_machine.gpus else overlap
    nodes: list[Node] = [_node(servers.machine, 1 if few else processes)] * (servers.count if few else 1)
    if alone:
        nodes = [_node(worker_machine, 1 / used)]
    server_at = tuple(m for m in range(servers.count) for _ in range(processes)) if few else (0,)
    first = 0 if alone else len(nodes)
    if not alone:
        nodes += [_node(worker_machine, 1 / used)] * workers
    worker_at = tuple(first + w // per_machine for w in range(world))
    read_at = engine_at = worker_at
    if "readers" in machines:
        machine, count = machines["readers"]
        first = len(nodes)
        nodes += [_node(machine)] * count
        read_at = tuple(first + w % count for w in range(world))
        engine_at = read_at if cluster.pooling else worker_at
    return Layout(
        nodes=tuple(nodes),
        servers=server_at,
        workers=worker_at,
        engines=engine_at,
        readers=read_at,
        latency_s=0.0 if alone else cluster.latency_us * 1e-6,
        alike=1 if few else total,
        server_machines=0 if few else servers.count,
        uneven=1.0 if few else uneven,
    )


def _node(machine: Machine, share: float = 1) -> Node:
    return Node(machine.cores / share, machine.speed, machine.network_gbit * 1e9 / 8)


def _safety(
    tables: tuple[TablePlan, ...],
    cluster: Cluster,
    constants: Constants,
    servers: ServerPlan,
    machines: int,
    imbalance: float,
) -> Safety:
    size = sum(t.load.rows * t.bytes.saved for t in tables) / servers.count * imbalance
    disk = servers.machine.disk_gib_s
    # Written to and read from the store of checkpoints over the network, or a disk that is slower.
    write = min(cluster.bucket_gib_s, disk or constants.disk.write_gib_s)
    read = min(cluster.bucket_gib_s, disk or constants.disk.read_gib_s)
    if cluster.volume is None and cluster.google is not None:
        write = read = cluster.bucket_gib_s
    snapshot_s, load_s = size / GIB / write, size / GIB / read
    mtbf_s = cluster.machine_mtbf_hours * 3600 / machines
    daly = daly_interval_s(snapshot_s, mtbf_s)
    recovery_s = cluster.restart_s + load_s
    return Safety(
        bytes_per_server=size,
        snapshot_s=snapshot_s,
        recovery_s=recovery_s,
        mtbf_s=mtbf_s,
        young_s=young_interval_s(snapshot_s, mtbf_s),
        daly_s=daly,
        useful=useful_share(snapshot_s, daly, recovery_s, mtbf_s),
    )


def _notes(plan: Plan, constants: Constants, prices: Prices | None, pooling_built: bool) -> tuple[str, ...]:
    notes = []
    unbuilt = sorted({t.load.row_format for t in plan.tables if not t.built})
    for form in unbuilt:
        notes.append(f"planned, not built: tables of this satrap cannot store {form} rows yet")
    full = [t.load for t in plan.tables if t.load.rows >= t.load.bounds.capacity]
    for t in full:
        notes.append(f"table '{t.name}' is planned full: {t.rows:,.0f} rows are its bound")
    if plan.cluster.pooling and not pooling_built:
        notes.append("planned, not built: workers of this satrap look up and pool themselves")
    if plan.partitions > plan.workload.partitions:
        notes.append(f"set store.partitions={plan.partitions}: with {plan.workload.partitions} a partition would be "
                     "too full, or some servers own more of them than others")  # fmt: skip
    if not plan.servers.fits:
        need, have = plan.servers.memory_bytes / GIB, plan.servers.memory_limit / GIB
        advice = "plan without one_machine" if plan.cluster.one_machine else "leave servers.count out"
        notes.append(f"the rows do not fit: {need:,.0f} GiB on the fullest server, {have:,.0f} GiB are for rows; "
                     f"{advice} to have it chosen")  # fmt: skip
    job = constants.job
    if job is None or job.name != plan.workload.name:
        notes.append("the job itself was not measured: reading, pooling and a network on the CPU are rough; "
                     "measure it with `satrap calibrate JOB.YAML`")  # fmt: skip
    if prices is not None:
        notes.append(f"prices of {prices.date}, {prices.region}, {prices.currency}: {prices.source}")
    return tuple(notes)
