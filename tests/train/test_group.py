"""Workers that agree, add up and exchange bytes: as threads of this process over real sockets, and when one is gone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest
import torch
from thread_group import in_threads

from satrap.errors import TrainingError
from satrap.train.group import Agreed, Alone, TorchGroup, listen
from satrap.train.plain import from_bytes, to_bytes


def over_sockets(world, work):
    """Runs `work(group)` in a thread for each worker, joined by sockets on loopback; what each returned or raised."""
    listener, address = listen()
    outcomes = [None] * world

    def run(rank):
        group = None
        try:
            group = TorchGroup(rank, world, address, listener=listener if rank == 0 else None, join_timeout_s=240)
            outcomes[rank] = work(group)
        except TrainingError as e:
            outcomes[rank] = e
        finally:
            if group is not None:
                group.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return outcomes


RUNNERS = {"threads": in_threads, "sockets": over_sockets}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_workers_know_the_same(runner, world):
    def work(group):
        r = group.rank
        first = group.agree(1.5 + r, r != 0, False)
        second = group.agree(0.0, False, r == world - 1)
        group.barrier()
        flat = torch.arange(5.0) * 10**r
        group.sum_(flat)
        told = group.broadcast(b"start" if r == 0 else None)
        nothing = group.broadcast(b"" if r == 0 else None)
        return first, second, flat.tolist(), told, nothing, group.gather(b"x" * r), group.gather(b"")

    outcomes = RUNNERS[runner](world, work)
    weight = sum(1.5 + r for r in range(world))
    scale = sum(10**r for r in range(world))
    assert (
        outcomes
        == [
            (
                Agreed(weight, world - 1, False),
                Agreed(0.0, 0, True),
                [x * scale for x in range(5)],
                b"start",
                b"",
                [b"x" * r for r in range(world)],
                [b""] * world,
            )
        ]
        * world
    )


def test_sums_have_the_same_bits_at_every_worker():
    # Weights that drift apart by a bit a step are different models in the end.
    def work(group):
        flat = torch.rand(10_007, generator=torch.Generator().manual_seed(group.rank))
        group.sum_(flat)
        return flat

    first, *others = over_sockets(4, work)
    assert all(torch.equal(first, other) for other in others)


def test_worker_alone_needs_nobody():
    group, flat = Alone(), torch.ones(3)
    group.sum_(flat)
    group.barrier()
    assert group.agree(2.0, False, True) == Agreed(2.0, 0, True)
    assert (group.gather(b"a"), group.broadcast(b"b"), flat.tolist()) == ([b"a"], b"b", [1, 1, 1])


@pytest.mark.parametrize("leaving", [0, 1])
@pytest.mark.parametrize("call", ["agree", "sum", "gather", "broadcast", "barrier"])
def test_worker_that_leaves_is_an_error_for_those_who_wait_and_not_a_wait_for_ever(leaving, call):
    # Flaw 14 of the original Persia: whoever waits in an all-reduce for a worker that has gone waits for ever.
    calls = {
        "agree": lambda g: g.agree(1.0, True, False),
        "sum": lambda g: g.sum_(torch.ones(100)),
        "gather": lambda g: g.gather(b"1"),
        "broadcast": lambda g: g.broadcast(b"1" if g.rank == 0 else None),
        "barrier": lambda g: g.barrier(),
    }

    def work(group):
        group.barrier()
        if group.rank == leaving:
            time.sleep(0.05)
            return "left"
        for _ in range(3):  # a broadcast's sender need not notice at once
            calls[call](group)
        return "went on"

    outcomes = over_sockets(3, work)
    assert outcomes[leaving] == "left"
    # Its neighbours in the ring see it go; they leave in turn, and so everybody is told.
    waiting = [o for r, o in enumerate(outcomes) if r != leaving]
    assert all(isinstance(o, TrainingError) for o in waiting), outcomes
    assert "another worker is gone" in str(waiting[0])


def dying(rank, world, address, listener, barrier):
    group = TorchGroup(rank, world, address, listener=listener)
    group.barrier()
    barrier.wait()
    if rank == 1:
        os._exit(9)  # as a kill would end it
    with pytest.raises(TrainingError, match=r"worker 0 of 2: another worker is gone; .* agreeing on .* are intact"):
        group.agree(1.0, True, False)


def test_killed_worker_is_an_error_for_the_others():
    listener, address = listen()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [
        context.Process(target=dying, args=(r, 2, address, listener if r == 0 else None, barrier)) for r in range(2)
    ]
    for w in workers:
        w.start()
    listener.close()
    for w in workers:
        w.join(240)
    assert [w.exitcode for w in workers] == [0, 9]


def test_worker_that_never_comes_is_named():
    listener, address = listen()
    with pytest.raises(
        TrainingError, match=r"worker 0 of 2: worker 1 has not come to tcp://127\.0\.0\.1:\d+ within 0.2"
    ):
        TorchGroup(0, 2, address, listener=listener, join_timeout_s=0.2)


def test_worker_0_that_cannot_be_reached_is_named():
    listener, address = listen()
    listener.close()
    with pytest.raises(TrainingError, match="worker 1 of 2 did not reach worker 0 at tcp://127"):
        TorchGroup(1, 2, address, join_timeout_s=0.5)


@pytest.mark.parametrize(
    ("rank", "world", "address", "message"),
    [
        (2, 2, "tcp://127.0.0.1:1", "there is no worker 2 among 2"),
        (1, 2, "127.0.0.1:1", "tcp://HOST:PORT, got '127.0.0.1:1'"),
        (0, 2, "tcp://127.0.0.1:1", "is given the socket"),
    ],
)
def test_what_makes_no_group_is_refused(rank, world, address, message):
    with pytest.raises(TrainingError, match=message):
        TorchGroup(rank, world, address)


def test_a_second_listener_on_one_port_is_refused():
    listener, address = listen()
    with pytest.raises(TrainingError, match="worker 0 cannot listen on 127"):
        listen(port=int(address.rpartition(":")[2]))
    listener.close()


def test_sockets_of_a_group_on_loopback_are_on_loopback_alone():
    # Whoever can reach a listening socket of the dense sum could join it.
    def listening():
        inodes = {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        }
        found = []
        for name in ("tcp", "tcp6"):
            with open(f"/proc/self/net/{name}") as f:
                for line in list(f)[1:]:
                    fields = line.split()
                    if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                        found.append(fields[1].rpartition(":")[0])
        return found

    def work(group):
        group.barrier()
        found = listening() if group.rank == 0 else None
        group.barrier()
        return found

    found, _ = over_sockets(2, work)
    assert found
    assert set(found) == {"0100007F"}


def test_values_survive_the_way_as_bytes():
    tree = {"a": [1, 2.5, float("inf")], 3: (None, True, "é"), "t": {"x": torch.arange(6).view(2, 3)}}
    back = from_bytes(to_bytes(tree))
    assert torch.equal(back["t"].pop("x"), tree["t"].pop("x"))
    assert back == tree
