"""The discrete-event simulation against queues whose answer is known."""

from __future__ import annotations

import pytest

from satrap.plan.events import Barrier, Clock, Cores, Link, Process, Queue, send


def until(clock: Clock) -> float:
    clock.run(until=lambda: False)
    return clock.now


def test_more_threads_than_cores_share_them_equally() -> None:
    # Bug: work beyond the cores is done for free, and every prediction for a busy machine is too high.
    clock = Clock()
    cores, ended = Cores(clock, 2), []

    def job(work: float) -> Process:
        yield cores.run(work)
        ended.append(clock.now)

    for work in (1.0, 1.0, 2.0):
        clock.start(job(work))
    assert until(clock) == pytest.approx(2.5)  # 1.5 s at two thirds of a core each, then the last alone
    assert ended == pytest.approx([1.5, 1.5, 2.5])
    assert cores.busy_s == pytest.approx(4.0)


def test_parallel_work_takes_as_many_cores_as_it_has_threads() -> None:
    clock = Clock()
    cores = Cores(clock, 4, speed=2.0)

    def job() -> Process:
        yield cores.run(8.0, threads=2.0)

    clock.start(job())
    assert until(clock) == pytest.approx(2.0)


def test_a_link_serves_one_message_after_the_other() -> None:
    # Bug: two messages at once each get the whole bandwidth.
    clock = Clock()
    out, into, arrived = Link(clock, 100.0), Link(clock, 50.0), []
    for _ in range(2):
        send(clock, out, into, 100.0, 100.0, 0.5, lambda: arrived.append(clock.now))
    until(clock)
    assert arrived == pytest.approx([2.5, 4.5])  # the receiver's end is the slower one
    assert out.busy_s == pytest.approx(2.0)
    assert into.busy_s == pytest.approx(4.0)


def test_a_full_queue_holds_back_who_fills_it() -> None:
    # Bug: a reader runs ahead without bound, and reading is never what bounds a run.
    clock, queue, put = Clock(), Queue(bound=2), []

    def fill() -> Process:
        for i in range(4):
            yield queue.put(i)
            put.append((i, clock.now))

    def take() -> Process:
        yield Cores(clock, 1).run(1.0)
        got = yield queue.get()
        assert got == 0

    clock.start(fill())
    clock.start(take())
    until(clock)
    assert put == [(0, 0.0), (1, 0.0), (2, 1.0)]


def test_a_barrier_opens_when_the_last_has_come() -> None:
    clock, passed = Clock(), []
    barrier, cores = Barrier(clock, 2, 0.25), Cores(clock, 2)

    def party(work: float) -> Process:
        yield cores.run(work)
        yield barrier.arrive()
        passed.append(clock.now)

    for work in (1.0, 3.0):
        clock.start(party(work))
    until(clock)
    assert passed == pytest.approx([3.25, 3.25])
