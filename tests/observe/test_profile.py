"""The rules that turn seconds by stage into a sentence, and the stages' counters themselves."""

from __future__ import annotations

import io
import json
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from satrap.observe.profile import (
    PoolerTime,
    Profile,
    ServerTime,
    WorkerTime,
    bottleneck,
    profile_table,
    read_profile,
    write_profile,
)
from satrap.observe.stages import NAMES, STAGES, THREADS, WAITS, StageSeconds, Trace


def worker(rank: int = 0, training_s: float = 10.0, cpu_s: float = 10.0, **stages: float) -> WorkerTime:
    cpu = {k: v for k, v in stages.items() if k in STAGES}
    return WorkerTime(rank=rank, training_s=training_s, cpu_s=cpu_s, stages=stages, stages_cpu=cpu)


def profile(*workers: WorkerTime, **more: Any) -> Profile:
    return Profile(workers=workers, **{"cores": 2, "threads": 2, "batch_size": 4096, "samples": 1000, **more})


def said(*workers: WorkerTime, **more: Any) -> str:
    return " ".join(bottleneck(profile(*workers, **more)))


def test_network_that_is_always_busy_is_named_with_its_share_and_threads():
    text = said(worker(dense=8.1, lookup_wait=0.05))
    assert text.startswith("The dense network computes 81 % of the time on 2 threads, and rows are never waited for.")
    assert "train.precision=bf16" in text


def test_bf16_is_not_advised_to_who_has_it_nor_threads_to_who_uses_all_cores():
    text = said(worker(dense=9.0), precision="bf16")
    assert "bf16" not in text
    assert "train.threads" not in text
    assert "train.threads=2" in said(worker(dense=9.0), threads=1)


def test_network_on_a_gpu_is_not_told_to_use_more_threads():
    text = said(worker(dense=9.0), device="cuda", threads=1)
    assert "on the GPU" in text
    assert "threads" not in text


def test_network_whose_thread_hardly_ran_is_told_of_other_programs():
    # 99 % of the time "computing" while another job has both cores: the advice would be to buy a smaller network.
    w = WorkerTime(training_s=10.0, cpu_s=3.0, stages={"dense": 9.9}, stages_cpu={"dense": 2.2})
    assert "only 22 %" in said(w)
    assert "other programs" not in said(worker(dense=9.9))


def test_slow_reader_is_told_by_its_slower_half():
    assert "decoding" in said(worker(dense=4.0, lookup_wait=5.5, read_wait=6.0, read=2.0, decode=5.0, pull=1.0))
    assert "reading files" in said(worker(dense=4.0, lookup_wait=5.5, read_wait=6.0, read=7.0, decode=1.0, pull=1.0))


def test_turns_taken_without_staleness_are_told_from_a_slow_engine():
    text = said(worker(dense=6.0, lookup_wait=3.8, gradient_wait=6.0, pull=1.5, push=1.5), staleness=0)
    assert "take turns" in text
    assert "train.staleness=4" in text
    slow = said(worker(dense=3.0, lookup_wait=6.5, gradient_wait=0.5, pull=6.0, push=2.5), staleness=4)
    assert "engine is slower" in slow
    assert "71 % of its work is the pull" in slow


@pytest.mark.parametrize("stage", THREADS["engine"])
def test_every_stage_of_the_engine_has_its_own_advice(stage):
    texts = {said(worker(dense=2.0, lookup_wait=7.5, **{s: 5.0})) for s in THREADS["engine"]}
    mine = said(worker(dense=2.0, lookup_wait=7.5, **{stage: 5.0}))
    assert f"is the {stage}" in mine
    assert len(texts) == len(THREADS["engine"])


def test_servers_that_are_busy_are_told_from_a_slow_network():
    w = worker(dense=3.0, lookup_wait=6.5, server_wait=6.0, pull=1.0)
    busy = (ServerTime(name="server 0", handled_s={"Pull": 5.0, "Push": 3.0}),)
    assert "servers are busy 80 %" in said(w, servers=busy)
    idle = (ServerTime(name="server 0", handled_s={"Pull": 0.5}),)
    assert "under way so long" in said(w, servers=idle, staleness=4)
    assert "train.staleness=8" in said(w, servers=idle, staleness=4)


def test_embedding_workers_that_are_busy_are_told_from_servers_and_the_network():
    # Bug: the worker waits for "servers" then, and the advice was more staleness, whatever pooling took.
    w = worker(dense=3.0, lookup_wait=6.5, server_wait=6.0, pull=1.0)
    slow = PoolerTime(name="embedding worker 1", stages={"dedup": 1.0, "unpool": 6.0, "pool": 3.0, "server_wait": 2.0})
    text = said(w, embedding_workers=(PoolerTime(name="embedding worker 0"), slow), staleness=4)
    assert "because embedding worker 1 is busy 70 % of it; 60 % of its work is the unpool" in text
    assert "More workers, each with an embedding worker" in text
    several = said(w, worker(1, dense=3.0, lookup_wait=6.5, server_wait=6.0), embedding_workers=(slow,))
    assert "More embedding workers than 1 divide the work, up to one a worker" in several
    # Two workers share it: each has two threads of its own there, which are half as busy.
    shared = msgspec.structs.replace(slow, clients=2)
    assert "under way so long" in said(w, embedding_workers=(shared,), staleness=4)


def test_embedding_workers_are_in_the_table_with_their_stages_and_their_wait():
    e = PoolerTime(name="embedding worker 0", stages={"pool": 3.0, "server_wait": 2.0}, stages_cpu={"pool": 2.5})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(
        profile_table(profile(worker(dense=8.0), embedding_workers=(e, PoolerTime(name="embedding worker 1"))))
    )
    text = console.export_text()
    assert "embedding worker 0: busy 30 %; pool 3.00 s, server wait 2.00 s; 2.50 CPU s in these stages" in text
    assert "embedding worker 1: nothing pooled" in text


def test_slow_worker_is_named_by_who_waits_least():
    slow, fast = worker(1, dense=9.0, worker_wait=0.2), worker(0, dense=4.0, worker_wait=5.2)
    # By the slowest worker's clock, the network computes: that is what holds all of them up.
    assert said(fast, slow).startswith("The dense network computes 90 %")


def test_workers_that_all_wait_for_their_sum_are_told_of_it():
    text = said(worker(0, dense=5.0, reduce=4.0), worker(1, dense=5.1, reduce=3.9))
    assert "Workers wait for each other 39 %" in text
    assert "added up" in text
    assert "4096" in text


def test_long_evaluations_beside_training_are_mentioned():
    assert "50 % of the run went into evaluations" in said(worker(dense=9.0, evaluation=10.0))


def test_run_that_trained_nothing_says_so_instead_of_dividing_by_zero():
    assert bottleneck(profile(worker(training_s=0.0, cpu_s=0.0), samples=0)) == [
        "Nothing was trained, so there is nothing to say."
    ]
    with Console(file=open("/dev/null", "w")) as out:
        out.print(profile_table(profile(worker(training_s=0.0, cpu_s=0.0))))


def test_every_counter_belongs_to_a_thread_of_the_table_or_is_beside_training():
    # A stage that nobody lists would be missing from the table and the sum without a word.
    listed = {*STAGES, *(w for waits in WAITS.values() for w in waits)}
    assert set(NAMES) - listed == {"evaluation", "checkpoint"}
    assert listed <= set(NAMES)


def test_time_counts_a_stage_inside_another_once():
    seconds, begun = StageSeconds(), time.perf_counter()
    with seconds.time("dense", beside="reduce"), seconds.time("reduce"):
        time.sleep(0.03)
    assert seconds.reduce >= 0.03
    assert 0 <= seconds.dense <= time.perf_counter() - begun - seconds.reduce


def test_waiting_is_told_from_work_by_cpu_time():
    seconds = StageSeconds()
    with seconds.waiting("pull", "server_wait"):
        time.sleep(0.03)
    assert seconds.server_wait > seconds.pull == seconds.cpu["pull"]


def test_threads_that_count_at_once_lose_nothing():
    seconds = StageSeconds()

    def count() -> None:
        for _ in range(5000):
            seconds.add("pull", 1.0, 1.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (seconds.pull, seconds.cpu["pull"]) == (20000.0, 20000.0)


def test_counters_go_to_another_process_without_their_lock_and_trace():
    seconds = StageSeconds(trace=Trace())
    seconds.add("dense", 2.0, 1.0)
    copy = pickle.loads(pickle.dumps(seconds))
    assert (copy.dense, copy.cpu["dense"], copy.trace) == (2.0, 1.0, None)


def test_trace_is_bounded_and_names_its_threads():
    trace = Trace(spans_max=2)
    for _ in range(5):
        trace.span("dense", time.perf_counter(), 0.001)
    events = trace.events()["traceEvents"]
    assert [e["ph"] for e in events] == ["M", "X", "X"]
    assert events[0]["args"]["name"] == threading.current_thread().name
    assert events[1]["dur"] == 1000


def test_profile_survives_the_log_and_is_written_as_text(tmp_path: Path) -> None:
    p = profile(worker(dense=8.0, pull=1.0, gradient_wait=7.0), servers=(ServerTime(name="server 0"),))
    assert read_profile(json.loads(msgspec.json.encode({"profile": p}))) == p
    before = msgspec.to_builtins(p)
    del before["embedding_workers"]  # a log of before there were any
    assert read_profile({"profile": before}) == p
    assert read_profile({"profile": {"of": "another version"}}) is None
    assert read_profile({}) is None
    files = write_profile(tmp_path, p, Trace())
    assert [f.name for f in files] == ["profile.txt", "trace.json"]
    text = files[0].read_text()
    assert "forward, backward, optimizer" in text
    assert bottleneck(p)[0][:30] in text
