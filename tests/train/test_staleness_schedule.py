"""The order of lookups and pushes: fixed by the schedule, whatever the timing of the threads."""

from __future__ import annotations

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satrap.ps.protocol import Ack
from satrap.train.pipeline import Feed, Leg
from satrap.train.results import StageSeconds
from satrap.train.schedule import StalenessSchedule


class Recorder:
    """An engine that only writes down what it is asked, in order."""

    def __init__(self, jitter: random.Random | None = None) -> None:
        self.operations: list[tuple[str, int]] = []
        self._jitter = jitter

    def prepare(self, batch: int) -> int:
        return batch

    def lookup(self, batch: int, *, train: bool) -> int:
        self._pause()
        self.operations.append(("lookup", batch))
        return batch

    def push(self, lookup: int, *, seq: int, lr_factor: float) -> Ack:
        assert seq == lookup + 1
        self._pause()
        self.operations.append(("push", lookup))
        return Ack()

    def short(self) -> str:
        """The operations as l0 (lookup of batch 0), p0 (its push), …"""
        return " ".join(f"{what[0]}{t}" for what, t in self.operations)

    def _pause(self) -> None:
        if self._jitter and self._jitter.random() < 0.3:
            time.sleep(self._jitter.random() * 0.002)


def run_leg(engine, batches, schedule, *, first=0, steps=None, jitter=None, stop_after=None, on_lookup=None):
    """Runs a leg with a main thread that takes `jitter`y time; returns the batches it computed on."""
    computed = []
    feed = Feed(iter(batches), engine.prepare, StageSeconds())
    with Leg(engine, feed, schedule, first=first, steps=steps, seconds=StageSeconds()) as leg:
        for lookup in leg:
            if jitter and jitter.random() < 0.3:
                time.sleep(jitter.random() * 0.002)
            if on_lookup:
                on_lookup(lookup)
            computed.append(lookup)
            leg.push(lookup, lr_factor=1.0)
            if stop_after is not None and len(computed) == stop_after:
                break
    return computed


def pushes_before_each_lookup(operations):
    """Lookup of batch t → the batches whose pushes came before it."""
    pushed, before = [], {}
    for what, t in operations:
        if what == "push":
            pushed.append(t)
        else:
            before[t] = list(pushed)
    return before


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(0, 5),
    warmup=st.integers(0, 6),
    n=st.integers(0, 14),
    first=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_lookup_finds_exactly_the_pushes_of_the_schedule_under_jitter(k, warmup, n, first, seed):
    # A race instead of a schedule makes hybrid runs unrepeatable, and lets staleness exceed its bound.
    engine, schedule = Recorder(random.Random(seed)), StalenessSchedule(k, warmup)
    batches = list(range(first, first + n))
    assert run_leg(engine, batches, schedule, first=first, jitter=random.Random(seed + 1)) == batches
    before = pushes_before_each_lookup(engine.operations)
    for t in batches:
        outstanding = len(range(first, t)) - len(before[t])
        ramp = 0 if t < warmup else min(k, t - first, t - warmup + 1 if warmup else k)
        assert before[t] == batches[: len(before[t])]
        assert outstanding == ramp
    assert [t for what, t in engine.operations if what == "push"] == batches


def test_synchronous_leg_alternates_lookup_and_push():
    engine = Recorder()
    run_leg(engine, range(3), StalenessSchedule(0))
    assert engine.operations == [("lookup", 0), ("push", 0), ("lookup", 1), ("push", 1), ("lookup", 2), ("push", 2)]


def test_operations_with_staleness_are_the_documented_sequence():
    engine = Recorder()
    run_leg(engine, range(5), StalenessSchedule(2))
    assert engine.short() == "l0 l1 l2 p0 l3 p1 l4 p2 p3 p4"


def test_leg_of_some_steps_looks_nothing_up_ahead_and_leaves_the_rest_to_the_next():
    # Rows looked up before a checkpoint's cut and used after it would make a resumed run differ.
    engine, seconds = Recorder(), StageSeconds()
    feed = Feed(iter(range(7)), engine.prepare, seconds)
    for first, steps in ((0, 4), (4, 3)):
        with Leg(engine, feed, StalenessSchedule(3), first=first, steps=steps, seconds=seconds) as leg:
            for lookup in leg:
                leg.push(lookup, lr_factor=1.0)
    assert engine.short() == "l0 l1 l2 l3 p0 p1 p2 p3 l4 l5 l6 p4 p5 p6"


def test_breaking_out_of_a_leg_applies_what_was_handed_over_and_nothing_else():
    engine = Recorder()
    assert run_leg(engine, range(100), StalenessSchedule(3), stop_after=5) == [0, 1, 2, 3, 4]
    assert [t for what, t in engine.operations if what == "push"] == [0, 1, 2, 3, 4]
    assert len(engine.operations) <= 5 + 9


def test_exception_in_the_main_thread_applies_no_further_push():
    # The loss of batch 1 is NaN: what it would push must not reach a row while the error travels.
    def on_lookup(lookup):
        if lookup == 1:
            raise ZeroDivisionError

    engine = Recorder()
    with pytest.raises(ZeroDivisionError):
        run_leg(engine, range(9), StalenessSchedule(4), on_lookup=on_lookup)
    assert ("push", 1) not in engine.operations
    assert not any(t.name == "satrap-engine" for t in threading.enumerate())


@pytest.mark.parametrize("where", ["read", "lookup", "push", "last push"])
def test_error_of_the_engine_thread_reaches_the_main_thread(where):
    # An engine thread that dies in silence leaves the main thread waiting for ever.
    class Broken(Recorder):
        def lookup(self, batch, *, train):
            if where == "lookup" and batch == 3:
                raise ValueError("broken")
            return super().lookup(batch, train=train)

        def push(self, lookup, *, seq, lr_factor):
            if (where == "push" and lookup == 2) or (where == "last push" and lookup == 5):
                raise ValueError("broken")
            return super().push(lookup, seq=seq, lr_factor=lr_factor)

    def batches():
        yield from range(4)
        if where == "read":
            raise ValueError("broken")
        yield from range(4, 6)

    with pytest.raises(ValueError, match="broken"):
        run_leg(Broken(), batches(), StalenessSchedule(1))


def test_evaluation_leg_reads_a_few_batches_ahead_and_pushes_nothing():
    engine = Recorder()
    feed = Feed(iter(range(50)), None, StageSeconds())
    with Leg(engine, feed, StalenessSchedule(2), train=False, seconds=StageSeconds()) as leg:
        for lookup in leg:
            time.sleep(0.0005)
            assert len(engine.operations) <= lookup + 1 + 3
            leg.release(lookup)
    assert engine.operations == [("lookup", t) for t in range(50)]


def test_feed_prepares_the_next_batch_before_the_push_it_waits_for():
    # Without it the unique ids of a batch are found while the main thread waits, in synchronous mode.
    order = []

    class Watched(Recorder):
        def prepare(self, batch):
            order.append(("prepare", batch))
            return batch

        def push(self, lookup, *, seq, lr_factor):
            order.append(("push", lookup))
            return super().push(lookup, seq=seq, lr_factor=lr_factor)

    run_leg(Watched(), range(3), StalenessSchedule(0))
    assert order == [("prepare", 0), ("prepare", 1), ("push", 0), ("prepare", 2), ("push", 1), ("push", 2)]


class Remote(Recorder):
    """An engine whose calls have two halves; what ends them takes time, and is done in another thread."""

    overlaps = True

    def __init__(self, jitter=None, broken=None):
        super().__init__(jitter)
        self.broken, self.under_way, self.most = broken, 0, 0
        self.ended = []

    def submit_lookup(self, batch, *, train):
        return self._begun("lookup", batch, batch)

    def submit_push(self, lookup, *, seq, lr_factor, merge=1):
        assert seq == (lookup if lookup is not None else seq - 1) + 1
        return self._begun("push", lookup, Ack())

    def _begun(self, what, batch, result):
        self.operations.append((what, batch))
        self.under_way += what == "lookup"
        self.most = max(self.most, self.under_way)

        def end():
            self._pause()
            if self.broken == (what, batch):
                raise ValueError("broken")
            self.ended.append((what, batch))
            self.under_way -= what == "lookup"
            return result

        return end


@settings(max_examples=25, deadline=None)
@given(k=st.integers(0, 5), warmup=st.integers(0, 6), n=st.integers(0, 14), seed=st.integers(0, 99))
def test_calls_that_overlap_begin_and_end_in_the_sequence_of_those_that_do_not(k, warmup, n, seed):
    # A service keeps the order in which requests are begun: that is what makes a delayed run as repeatable.
    schedule, plain, remote = StalenessSchedule(k, warmup), Recorder(), Remote(random.Random(seed))
    for engine in (plain, remote):
        assert run_leg(engine, range(n), schedule, jitter=random.Random(seed + 1)) == list(range(n))
    assert remote.operations == remote.ended == plain.operations


def test_lookups_are_under_way_together_as_far_as_the_staleness_allows():
    held = threading.Event()

    class Slow(Remote):
        def _begun(self, what, batch, result):
            end = super()._begun(what, batch, result)
            if len(self.operations) == 4:
                held.set()

            def late():
                assert held.wait(60)  # nothing comes back before the fourth is asked for
                return end()

            return late

    engine = Slow()
    run_leg(engine, range(6), StalenessSchedule(3))
    assert engine.most >= 4


@pytest.mark.parametrize("broken", [("lookup", 0), ("lookup", 3), ("push", 2), ("push", 5)])
@pytest.mark.parametrize("k", [0, 2])
def test_error_at_the_end_of_a_call_reaches_the_main_thread_and_no_thread_is_left(broken, k):
    engine = Remote(broken=broken)
    with pytest.raises(ValueError, match="broken"):
        run_leg(engine, range(6), StalenessSchedule(k))
    assert not any(t.name in ("satrap-engine", "satrap-settle") for t in threading.enumerate())


def test_error_at_the_end_of_a_merged_push_does_not_leave_its_waiter():
    # The engine thread waits for a merged push; if what ends it is broken, nobody else would wake it.
    feed = Feed(iter(range(3)), None, StageSeconds())
    leg = Leg(Remote(broken=("push", 1)), feed, StalenessSchedule(0), world=2, seconds=StageSeconds())

    def steps():
        with leg:
            for lookup in leg:
                leg.push(lookup, lr_factor=1.0)

    with pytest.raises(ValueError, match="broken"):
        steps()
    assert not any(t.name in ("satrap-engine", "satrap-settle") for t in threading.enumerate())
