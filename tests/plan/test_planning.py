"""Plans against what can be worked out by hand, and against what must hold for any."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace
from tests_plan import cluster, constants, measured

from satrap.errors import JobError
from satrap.plan import Workload, make_plan, quantity, target, workload_of
from satrap.plan.constants import TableSeen
from satrap.plan.costs import step_costs
from satrap.plan.network import legs
from satrap.plan.simulation import one_machine, simulate
from satrap.plan.workload import expected_unique
from satrap.schema import (
    MLP,
    Capacity,
    Categorical,
    Custom,
    Data,
    Hashed,
    Job,
    Label,
    Numeric,
    QuotientRemainder,
    Table,
    Train,
    WireFormat,
)

GIB = 2**30


def job(**train: int) -> Job:
    return Job(
        name="clicks",
        data=Data(train=("a.parquet",), label=(Label(column="y"),)),
        features=(Categorical(name="user"), Categorical(name="item"), Numeric(name="price")),
        tables=(Table(name="user", dim=64, wire=WireFormat.FP16),),
        default_dim=16,
        model=MLP(hidden=(32,)),
        train=Train(**{"batch_size": 1024, "staleness": 4, **train}),
    )


def billions(parameters: str = "1T", **changes: float) -> Workload:
    return target(quantity(parameters), dim=128, row_format="int8", **changes)  # type: ignore[arg-type]


def test_servers_are_as_few_as_hold_all_rows_with_the_index_at_its_emptiest() -> None:
    # Bug: machines are counted by the mean, and the fullest runs out of memory.
    plan = make_plan(billions("10T"), cluster(), constants())
    assert plan.servers.fits
    each = plan.tables[0].worst.total
    need = plan.rows * each
    assert plan.servers.count == math.ceil(need / (0.92 * 1024 * GIB)) or plan.row_imbalance > 1.0
    assert plan.servers.memory_bytes * plan.servers.count >= need
    assert plan.servers.dollars_per_hour == plan.servers.count * 10


def test_a_fixed_number_of_servers_that_is_too_small_is_said_not_hidden() -> None:
    plan = make_plan(billions("10T"), cluster(servers={"machine": "memory", "count": 3}), constants())
    assert not plan.servers.fits
    assert any("do not fit" in n for n in plan.notes)


def test_what_does_not_exist_yet_is_marked_as_planned() -> None:
    # Bug: a plan promises what satrap cannot do.
    from satrap.plan.layout import is_built

    plan = make_plan(billions(), cluster(), constants())
    assert any("int8 rows" in n for n in plan.notes) == (not is_built("int8"))


def test_a_tiered_server_holds_the_hot_rows_in_memory_and_the_others_on_disk() -> None:
    plan = make_plan(billions(), cluster(tiered={"machine": "disk", "hot": 0.2}), constants())
    tiered, table = plan.tiered, plan.tables[0]
    assert tiered is not None
    assert tiered.fits
    memory = 0.2 * (table.worst.total + 1) + 0.8 * 10.02
    assert tiered.memory_bytes * tiered.count == pytest.approx(plan.rows * memory, rel=0.001)
    record = 16 + table.worst.values + table.worst.state
    assert tiered.ssd_bytes * tiered.count == pytest.approx(plan.rows * 0.8 * 1.5 * record, rel=0.001)


def test_addressable_and_materialised_parameters_are_told_apart() -> None:
    # Bug: memory is planned for every id that could come, or claims count rows that were never made.
    whole, tenth = billions(), billions(materialised=0.1)
    assert tenth.addressable_parameters == whole.addressable_parameters == 1e12
    assert tenth.parameters == pytest.approx(1e11)
    a, b = (make_plan(w, cluster(), constants()) for w in (whole, tenth))
    assert b.bytes < 0.11 * a.bytes


def test_throughput_does_not_depend_on_the_size_of_the_tables_once_no_cache_holds_them() -> None:
    # The published figure of the original: flat from 6.25 to 100 trillion parameters.
    rates = [
        make_plan(billions(p), cluster(servers={"machine": "memory", "count": 20, "processes": 1}), constants())
        for p in ("6.25T", "100T")
    ]
    assert rates[1].simulated.samples_per_s == pytest.approx(rates[0].simulated.samples_per_s, rel=0.1)


def test_bytes_of_messages_are_those_of_the_wire_format() -> None:
    # Bug: the planner's bytes and those of satrap.wire drift apart.
    w = workload_of(job(), rows={"": 1e6})
    got = legs(w, samples=100, servers=1, workers=1, pooling=False)
    user, item = (t.unique(100) for t in w.tables)
    assert got.pull_request == pytest.approx(40 + 2 * 16 + 8 * (user + item))
    assert got.pull_reply == pytest.approx(40 + 2 * 16 + user * (64 * 2 + 1) + item * (16 * 4 + 1))
    assert got.push_request == pytest.approx(40 + 2 * 16 + 80 + user * (8 + 1 + 128) + item * (8 + 1 + 64))
    assert got.all_reduce == 0


def test_rows_must_be_known_and_named() -> None:
    with pytest.raises(JobError, match="how many rows will table 'user' have"):
        workload_of(job())
    with pytest.raises(JobError, match="no table 'usr'; did you mean 'user'"):
        workload_of(job(), rows={"usr": 1e6})
    with pytest.raises(JobError, match="give one of them"):
        workload_of(job(), rows={"": 1e6}, parameters=1e9)


def test_parameters_are_divided_by_measured_rows() -> None:
    seen = tuple(
        TableSeen(name=n, ids_per_sample=1, unique_per_batch=500, rows_seen=r)
        for n, r in (("user", 300), ("item", 100))
    )
    w = workload_of(job(), parameters=1e9, measured=measured("clicks", seen))
    user, item = w.tables
    assert user.rows == pytest.approx(3 * item.rows)
    assert w.parameters == pytest.approx(1e9)


@pytest.mark.parametrize("text", ["", "12Q", "-5", "1e", "T"])
def test_a_quantity_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="is no quantity"):
        quantity(text)


def test_distinct_ids_grow_with_the_batch_and_never_beyond_it() -> None:
    for rows in (10.0, 1e6, 1e12):
        last = 0.0
        for ids in (1, 10, 1000, 10**5):
            now = expected_unique(ids, rows, 1.05)
            assert last < now <= min(ids, rows) * (1 + 1e-9) or now == pytest.approx(rows)
            last = now


def test_distinct_ids_agree_with_drawing_them() -> None:
    # Bug: a formula of the unique ids that no sample bears out; every byte and row of a plan follows from it.
    import numpy as np

    rows, ids = 100_000, 20_000
    p = np.arange(1, rows + 1) ** -1.05
    drawn = np.random.default_rng(1).choice(rows, (20, ids), p=p / p.sum())
    assert expected_unique(ids, rows, 1.05) == pytest.approx(np.mean([len(set(x)) for x in drawn]), rel=0.01)


def test_one_machine_is_as_fast_as_its_cores_when_work_is_spread() -> None:
    # 13 µs of CPU a sample and messages on two cores: near 2 cores / the sum, and never above it.
    seen = tuple(TableSeen(name=n, ids_per_sample=1, unique_per_batch=500, rows_seen=1000) for n in ("user", "item"))
    known = constants(measured("clicks", seen, batch_size=1024))
    w = workload_of(job(), measured=known.job)
    costs = step_costs(w, known, servers=1, workers=1, worker=cluster().machines["memory"])
    total = costs.server + costs.engine + costs.read + costs.dense.cpu_s + costs.beside
    got = simulate(costs, one_machine(2, servers=1), staleness=4)
    assert 0.9 < got.samples_per_s / (2 * costs.samples / total) <= 1.0001
    assert got.bottleneck == "cores of workers"


def test_staleness_hides_the_delay_of_a_network_and_none_does_not() -> None:
    # Bug: the simulation forgets the schedule, and predicts hybrid speed for synchronous training.
    w = billions("1T", batch_size=8192, dense_parameters=20_000_000)
    far = cluster(latency_us=5000)
    hidden, open_ = (
        make_plan(
            Workload(**{**{f: getattr(w, f) for f in w.__dataclass_fields__}, "staleness": k}), far, constants()
        ).simulated
        for k in (8, 0)
    )
    assert hidden.samples_per_s > 1.15 * open_.samples_per_s
    assert open_.bottleneck == "waiting for answers"


def test_twice_the_workers_train_faster_as_long_as_servers_keep_up() -> None:
    def rate(workers: int) -> float:
        w = billions("1T", batch_size=16_384 * workers, dense_parameters=20_000_000)
        return make_plan(w, cluster(workers={"machine": "gpu", "count": workers}), constants()).simulated.samples_per_s

    assert 1.5 < rate(4) / rate(2) < 2.05


def test_a_network_of_the_users_own_needs_to_be_measured() -> None:
    own = Job(name="own", data=job().data, features=job().features, model=Custom(path="a:B"))
    with pytest.raises(JobError, match="satrap calibrate"):
        make_plan(workload_of(own, rows={"": 1e6}), cluster(), constants())


def test_the_best_interval_between_snapshots_loses_least() -> None:
    from satrap.plan.risk import daly_interval_s, useful_share

    for snapshot, mtbf in ((60, 86_400), (3600, 259_200)):
        best = useful_share(snapshot, daly_interval_s(snapshot, mtbf), 600, mtbf)
        others = [useful_share(snapshot, f * daly_interval_s(snapshot, mtbf), 600, mtbf) for f in (0.5, 0.8, 1.25, 2)]
        assert all(best > o for o in others)


def test_no_table_is_planned_with_more_rows_than_its_bound() -> None:
    # Bug: a table bounded to a million rows is planned with the two billion that its ids could make.
    bounded = job()
    tables = (
        Table(name="user", dim=64, capacity=Capacity(rows=1_000_000)),
        Table(name="item", dim=16, ids=QuotientRemainder(rows=1000)),
    )
    load = {t.name: t for t in workload_of(replace(bounded, tables=tables), rows={"": 2e9}).tables}
    assert (load["user"].rows, load["user"].addressable_rows) == (1_000_000, 2e9)
    assert (load["item"].rows, load["item"].ids_per_sample) == (2000, 2)
    plan = make_plan(workload_of(replace(bounded, tables=tables), rows={"": 2e9}), cluster(), constants())
    assert any("table 'user' is planned full: 1,000,000 rows" in n for n in plan.notes)


def test_a_bounded_table_needs_no_number_of_rows_to_be_planned() -> None:
    tables = (Table(name="user", dim=64, capacity=Capacity(rows=500)), Table(name="item", dim=8, ids=Hashed(rows=300)))
    loads = workload_of(replace(job(), tables=tables)).tables
    assert {t.name: t.rows for t in loads} == {"user": 500, "item": 300}


def test_the_last_part_of_a_batch_leaves_cores_idle() -> None:
    # Bug: parts that are divided among cores like water, so that two cores are always both busy.
    seen = tuple(TableSeen(name=n, ids_per_sample=1, unique_per_batch=10, rows_seen=1000) for n in ("user", "item"))
    whole = constants(measured("clicks", seen, batch_size=1024, dense_us=10.0, dense_wall_us=5.5))
    assert whole.job is not None
    w = workload_of(job(), measured=whole.job)
    speed = {}
    for parts in (1, 3, 4):
        # By the clock, alone on two cores: four parts in two rounds and three in two, and what one thread does.
        wall = {1: 5.5, 3: (10.0 - 1.0) / 3 * 2 + 1.0, 4: 5.5}[parts]
        known = replace(whole, job=replace(whole.job, dense_parts=parts, dense_wall_us=wall))
        costs = step_costs(w, known, servers=1, workers=1, worker=cluster().machines["memory"])
        assert costs.dense.alone_s == pytest.approx(0.0 if parts == 1 else 1024e-6, rel=0.01)
        speed[parts] = simulate(costs, one_machine(2, servers=1), staleness=4).samples_per_s
    assert speed[3] < speed[4] < speed[1]


def test_what_threads_do_not_reach_together_slows_workers_without_gpus_alone() -> None:
    seen = tuple(TableSeen(name=n, ids_per_sample=1, unique_per_batch=500, rows_seen=1000) for n in ("user", "item"))
    rates = {}
    for machine in ("memory", "gpu"):
        for overlap in (1.0, 0.8):
            known = constants(measured("clicks", seen, batch_size=1024, overlap=overlap))
            w = workload_of(job(), measured=known.job)
            planned = make_plan(w, cluster(workers={"machine": machine, "count": 1}), known)
            rates[machine, overlap] = planned.simulated.samples_per_s
    assert rates["gpu", 0.8] == rates["gpu", 1.0]
    assert rates["memory", 0.8] <= rates["memory", 1.0]
    costs = step_costs(w, known, servers=1, workers=1, worker=cluster().machines["memory"])
    one, less = (simulate(costs, one_machine(2, servers=1, reached=x), staleness=4) for x in (1.0, 0.8))
    assert less.samples_per_s == pytest.approx(0.8 * one.samples_per_s, rel=0.05)
    assert one.cores_used == pytest.approx(2.0, rel=0.05)
