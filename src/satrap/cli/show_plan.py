"""How a plan looks on a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from satrap.cli import show
from satrap.plan import Constants, Plan
from satrap.plan.planning import ServerPlan

Rows = list[tuple[str, str]]
GIB = 2**30


def text(plan: Plan, constants: Constants) -> None:
    """The plan in sections; figures on the right, what they mean beside them."""
    w = plan.workload
    tables = f"{len(plan.tables)} table{'s' if len(plan.tables) > 1 else ''}"
    show.line(f"{w.name} on {plan.cluster.name}: {tables}, batches of {w.batch_size:,} samples")
    for title, rows in _sections(plan, constants):
        show.line(f"\n{title}")
        width = max((len(a) for a, _ in rows), default=0)
        for name, value in rows:
            show.line(f"  {name:<{width}}  {value}".rstrip())
    show.line("\nnotes")
    for note in plan.notes:
        show.line(f"  ! {note}" if note.startswith("planned") else f"  · {note}")


def _sections(plan: Plan, constants: Constants) -> Iterator[tuple[str, Rows]]:
    yield "parameters", _parameters(plan)
    yield "bytes a row (mean)", _bytes(plan)
    yield "servers", list(_servers(plan))
    yield "machines and cost", list(_machines(plan))
    yield f"network, at the predicted {plan.simulated.samples_per_s:,.0f} samples/s", _network(plan)
    yield "snapshots and failures", _safety(plan)
    yield "chance", _chance(plan)
    yield f"throughput (constants of {constants.machine.cpu}, {constants.machine.date})", _throughput(plan)


def _parameters(plan: Plan) -> Rows:
    w = plan.workload
    return [
        ("addressable", f"{big(w.addressable_parameters)}: that ids can name"),
        ("materialised", f"{big(w.parameters)} in {big(plan.rows)} rows: that will exist"),
    ]


def _bytes(plan: Plan) -> Rows:
    shown: Rows = []
    seen: dict[tuple[Any, ...], list[str]] = {}
    for t in plan.tables:
        seen.setdefault((t.load.dim, t.load.row_format, type(t.load.optimizer).__name__), []).append(t.load.name)
    for (dim, form, optimizer), names in seen.items():
        some = [t for t in plan.tables if t.load.name in names]
        rows = sum(t.load.rows for t in some)

        def mean(part: str, some: Any = some, rows: float = rows) -> float:
            return float(sum(getattr(t.bytes, part) * t.load.rows for t in some) / rows)

        kept = ("values", "state", "version", "index", "slack", *(["sketch"] if mean("sketch") else []))
        parts = ", ".join(f"{p} {mean(p):.1f}" for p in kept)
        who = names[0] if len(names) == 1 else f"{len(names)} tables"
        shown.append((f"{who}, dim {dim} {form} {optimizer}", f"{mean('total'):.1f}: {parts}"))
    return shown


def _servers(plan: Plan) -> Iterator[tuple[str, str]]:
    for s in (plan.servers, plan.tiered):
        if s is None:
            continue
        name = "tiered alternative" if s.tiered else "in memory"
        yield name, f"{s.count} x {s.kind}, {_processes(s)}, {s.dollars_per_hour:,.2f} an hour"
        yield "", f"memory {tb(s.memory_bytes)} of {tb(s.memory_limit)} on the fullest, the index at its emptiest"
        if s.ssd_bytes:
            yield "", f"SSD {tb(s.ssd_bytes)} of {tb(s.ssd_limit)}"


def _processes(s: ServerPlan) -> str:
    return "one server each" if s.processes == 1 else f"{s.processes} servers each"


def _machines(plan: Plan) -> Iterator[tuple[str, str]]:
    for g in plan.groups:
        yield g.name, f"{g.count} x {g.kind}{' (spot)' if g.spot else ''}: {g.dollars_per_hour:,.2f} an hour"
    count = sum(g.count for g in plan.groups)
    yield "together", f"{count} machine{'s' if count > 1 else ''}, {plan.dollars_per_hour:,.2f} an hour"
    if plan.tiered is not None:
        rest = plan.dollars_per_hour - plan.servers.dollars_per_hour + plan.tiered.dollars_per_hour
        yield "with the tiered", f"{rest:,.2f} an hour"
    million = plan.dollars_per_hour / 3600 / plan.simulated.samples_per_s * 1e6
    yield "a million samples", f"{million:,.4f}"


def _network(plan: Plan) -> Rows:
    legs, samples = plan.legs, plan.costs.samples
    servers, machines = plan.servers.count, plan.machines("readers" if plan.cluster.pooling else "workers")

    def rate(size: float, per: float, ends: int, end: str) -> str:
        # All workers' bytes together, over the machines at that end.
        where = "within the machine" if plan.cluster.one_machine else f"a {end}"
        return f"{size / per:,.0f} bytes a sample, {plan.gbit_per_s(size, of=ends):,.3g} Gbit/s {where}"

    rows = [
        ("to servers", rate(legs.to_servers, samples, servers, "server machine")),
        ("from servers", rate(legs.from_servers, samples, servers, "server machine")),
    ]
    if plan.cluster.pooling:
        rows.append(("pooled, each way", rate(legs.pooled, samples, machines, "reader machine")))
    count = plan.machines("workers")
    if plan.workers > 1:
        # The ring passes each machine once, whatever the number of workers on it.
        per_s = legs.all_reduce * plan.simulated.samples_per_s / (samples * plan.workers) * 8 / 1e9
        where = f"{count} machines" if count > 1 else "within one machine"
        rows.append(("all-reduce", f"{legs.all_reduce:,.0f} bytes a step, {per_s:,.3g} Gbit/s a machine ({where})"))
    return rows


def _safety(plan: Plan) -> Rows:
    s = plan.safety
    return [
        ("snapshot", f"{tb(s.bytes_per_server)} a server machine, {seconds(s.snapshot_s)}; training goes on"),
        ("recovery", f"{seconds(s.recovery_s)} from a failure to the first step"),
        ("a machine fails", f"every {seconds(s.mtbf_s)}"),
        ("best interval", f"{seconds(s.daly_s)} between snapshots (Daly; Young: {seconds(s.young_s)})"),
        ("useful time", f"{100 * s.useful:.1f} % at least: as if training waited for snapshots"),
    ]


def _chance(plan: Plan) -> Rows:
    return [
        ("colliding ids", f"{plan.collisions:,.3g} pairs expected, if ids are hashes of text; none if integers"),
        ("partitions", f"{plan.partitions:,}"),
        ("fullest server", f"{plan.row_imbalance:.4f} times the mean, in rows"),
        ("busiest server", f"{plan.load_imbalance:.3f} times the mean, in a batch"),
    ]


def _throughput(plan: Plan) -> Rows:
    c, s = plan.costs, plan.simulated
    per_million = 1e6 / c.samples
    rows = [
        ("samples/s", f"{s.samples_per_s:,.0f}, {plan.workers} workers, staleness {s.staleness}"),
        ("first bottleneck", s.bottleneck),
        ("distinct ids", f"{c.rows / c.samples:.2f} a sample, of {plan.workload.ids_per_sample:g}"),
        ("servers", f"{plan.server_core_s_per_million:.2f} core-seconds a million samples"),
        ("lookup side", f"{c.engine * per_million:.2f} core-seconds a million (of the measured machine)"),
        ("reading", f"{c.read * per_million:.2f} core-seconds a million"),
    ]
    if c.dense.gpu_s:
        rows.append(("dense network", f"{c.dense.gpu_s * 1e3:.2f} ms of a GPU a step"))
    else:
        rows.append(("dense network", f"{c.dense.cpu_s * per_million:.2f} core-seconds a million"))
    used = sorted(s.busy.items(), key=lambda x: -x[1])
    rows.append(("in use", ", ".join(f"{k} {100 * v:.0f} %" for k, v in used)))
    return rows


def as_json(plan: Plan, constants: Constants) -> None:
    """The figures, for scripts."""

    def servers(s: ServerPlan) -> dict[str, Any]:
        return {
            "machine": s.kind,
            "count": s.count,
            "processes": s.processes,
            "memory_bytes": s.memory_bytes,
            "ssd_bytes": s.ssd_bytes,
            "fits": s.fits,
            "dollars_per_hour": s.dollars_per_hour,
        }

    w, s = plan.workload, plan.safety
    show.as_json(
        {
            "job": w.name,
            "cluster": plan.cluster.name,
            "addressable_parameters": w.addressable_parameters,
            "materialised_parameters": w.parameters,
            "rows": plan.rows,
            "bytes": plan.bytes,
            "bytes_per_row": {t.load.name: t.bytes.total for t in plan.tables},
            "servers": servers(plan.servers),
            "tiered": None if plan.tiered is None else servers(plan.tiered),
            "machines": {g.name: {"machine": g.kind, "count": g.count, "spot": g.spot} for g in plan.groups},
            "dollars_per_hour": plan.dollars_per_hour,
            "partitions": plan.partitions,
            "bytes_per_sample": {
                "to_servers": plan.legs.to_servers / plan.costs.samples,
                "from_servers": plan.legs.from_servers / plan.costs.samples,
                "pooled": plan.legs.pooled / plan.costs.samples,
            },
            "server_core_s_per_million": plan.server_core_s_per_million,
            "snapshot_s": s.snapshot_s,
            "recovery_s": s.recovery_s,
            "interval_s": s.daly_s,
            "collisions": plan.collisions,
            "samples_per_s": plan.simulated.samples_per_s,
            "bottleneck": plan.simulated.bottleneck,
            "busy": plan.simulated.busy,
            "constants": {"cpu": constants.machine.cpu, "date": constants.machine.date},
            "notes": list(plan.notes),
        }
    )


def big(n: float) -> str:
    """A large number with its unit.

    >>> big(100e12), big(781.25e9), big(2_000)
    ('100 trillion', '781.25 billion', '2,000')
    """
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if n >= unit:
            return f"{n / unit:,.2f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{n:,.0f}"


def tb(n: float) -> str:
    """Bytes, decimal from a terabyte on as machines are sold.

    >>> tb(11.6e12), tb(3 * 2**30)
    ('11.60 TB', '3.00 GiB')
    """
    return f"{n / 1e12:,.2f} TB" if n >= 1e12 else f"{n / GIB:,.2f} GiB"


def seconds(s: float) -> str:
    """A duration in the unit a person would choose.

    >>> seconds(12), seconds(300), seconds(7200), seconds(864000)
    ('12.0 s', '5.0 min', '2.0 h', '10.0 days')
    """
    if s < 120:
        return f"{s:.1f} s"
    if s < 7200:
        return f"{s / 60:.1f} min"
    return f"{s / 3600:.1f} h" if s < 172_800 else f"{s / 86_400:.1f} days"
