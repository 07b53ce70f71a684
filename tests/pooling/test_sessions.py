"""What an embedding worker keeps, for how long, and what it says to who comes too late or has no right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from test_pooler_conformance import lists, ones, some, two_features

from satrap.errors import ServerLost, ServerUnreachable, ServiceError, StoreError, WireError
from satrap.observe.scrape import Scrape
from satrap.pooling import EmbeddingWorker, Plan, RemotePooler
from satrap.pooling import session as sessions
from satrap.pooling.packing import pack_gradients
from satrap.ps import Keys, Placement, Role
from satrap.ps.exchange import Exchange
from satrap.schema import Categorical, Job
from satrap.testing import SOON, Cluster, EmbeddingWorkers
from satrap.wire import Clear, Code, Failure, Lookup, PooledAck, PushPooled, Section, decode, encode


@pytest.fixture
def job() -> Job:
    return two_features()


@pytest.fixture
def cluster(job: Job) -> Iterator[Cluster]:
    with Cluster(job.resolved_tables(), servers=2, seed=job.seed) as cluster:
        yield cluster


@pytest.fixture
def pooling(job: Job, cluster: Cluster) -> Iterator[EmbeddingWorkers]:
    with EmbeddingWorkers(Plan.of(job), cluster) as pooling:
        yield pooling


def look_up(pooler: RemotePooler, *, train: bool = True) -> Any:
    return pooler.begin_lookup(pooler.prepare(some(), 2), train=train)()


def push(pooler: RemotePooler, found: Any, seq: int) -> Any:
    return pooler.begin_push(found, ones(found), epoch=0, seq=seq)()


def kept(worker: EmbeddingWorker) -> int:
    return sum(s.kept for s in worker._sessions.values())


def soon(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


def test_gradients_free_the_ticket_of_their_lookup_and_those_before_it(pooling: EmbeddingWorkers) -> None:
    # Flaw 11 of earlier systems: batches whose gradients never came were kept for ever.
    pooler, worker = pooling.connect(), pooling.workers[0]
    found = [look_up(pooler) for _ in range(5)]
    assert kept(worker) == 5
    push(pooler, found[2], 1)
    assert kept(worker) == 2
    push(pooler, found[4], 2)
    assert kept(worker) == 0


def test_evaluation_keeps_nothing_for_gradients(pooling: EmbeddingWorkers) -> None:
    look_up(pooling.connect(), train=False)
    assert kept(pooling.workers[0]) == 0


def test_answers_are_freed_when_they_have_been_seen(pooling: EmbeddingWorkers) -> None:
    pooler = pooling.connect()
    for _ in range(20):
        look_up(pooler, train=False)
    (session,) = pooling.workers[0]._sessions.values()
    assert len(session._answers) == 1


def test_gradients_that_come_too_late_are_refused_by_name(pooling: EmbeddingWorkers) -> None:
    pooler = pooling.connect()
    found = [look_up(pooler) for _ in range(2)]
    push(pooler, found[1], 1)
    with pytest.raises(StoreError, match="gradients of lookup 1 of client 0, which is not kept"):
        push(pooler, found[0], 2)


def test_lookups_without_gradients_are_bounded(pooling: EmbeddingWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "KEPT_MAX", 3)
    pooler = pooling.connect()
    found = [look_up(pooler) for _ in range(3)]
    with pytest.raises(StoreError, match="3 batches of client 0 wait for their gradients already"):
        look_up(pooler)
    assert push(pooler, found[2], 1).ack.applied == 5
    look_up(pooler)


def test_a_worker_that_comes_back_ends_its_earlier_session_and_what_was_kept_for_it(pooling: EmbeddingWorkers) -> None:
    old, worker = pooling.connect(0), pooling.workers[0]
    found = look_up(old)
    look_up(pooling.connect(1))
    look_up(pooling.connect(0))
    assert kept(worker) == 2
    with pytest.raises(ServerLost, match=r"embedding worker 0 .* has ended: client 0 has begun another"):
        push(old, found, 1)


def test_a_session_without_a_request_for_long_ends(job: Job, cluster: Cluster) -> None:
    with EmbeddingWorkers(Plan.of(job), cluster, idle_s=0.2) as pooling:
        pooler = pooling.connect()
        found = look_up(pooler)
        assert soon(lambda: not pooling.workers[0]._sessions)
        with pytest.raises(ServerLost, match=r"no request has come for 0.2 s"):
            push(pooler, found, 1)


def test_another_placement_ends_all_sessions_and_refuses_who_goes_by_the_old(
    job: Job, cluster: Cluster, pooling: EmbeddingWorkers
) -> None:
    pooler, worker = pooling.connect(), pooling.workers[0]
    found = look_up(pooler)
    for server in cluster.servers:
        server.advance(3)
    worker.renew(Placement.even(cluster.placement.addresses, 8, 3))
    assert soon(lambda: not worker._sessions)
    with pytest.raises(ServiceError, match="goes by placement 3, the request by placement 0"):
        push(pooler, found, 1)
    new = pooling.connect(placement=3)
    assert push(new, look_up(new), 1).ack.applied == 5
    with pytest.raises(ServiceError, match="embedding worker 0 goes by placement 3; 2 is older"):
        worker.renew(Placement.even(cluster.placement.addresses, 8, 2))


def test_an_embedding_worker_started_anew_is_told_apart(pooling: EmbeddingWorkers) -> None:
    pooler = pooling.connect()
    found = look_up(pooler)
    pooling.restart(0)
    with pytest.raises(ServerLost, match=r"embedding worker 0 .* has started anew"):
        push(pooler, found, 1)


def test_an_embedding_worker_that_is_not_there_is_named(job: Job) -> None:
    pooler = RemotePooler(Plan.of(job), "tcp://127.0.0.1:1", index=4, deadline_s=0.3, patience=SOON)
    with pytest.raises(ServerUnreachable, match=r"embedding worker 4 .* has not answered for 0.3 s"):
        look_up(pooler)
    pooler.close()


def test_a_server_that_lost_its_rows_is_named_with_the_embedding_worker(
    cluster: Cluster, pooling: EmbeddingWorkers
) -> None:
    pooler = pooling.connect()
    found = look_up(pooler)
    for server in range(2):
        cluster.stop(server)
        cluster.restart(server)
    with pytest.raises(ServerLost, match=r"embedding worker 0 .*: server . .* has started anew"):
        push(pooler, found, 1)


def test_a_server_that_does_not_answer_is_named_with_the_embedding_worker(job: Job, cluster: Cluster) -> None:
    with EmbeddingWorkers(Plan.of(job), cluster, deadline_s=2.0) as pooling:
        pooler = pooling.connect()
        look_up(pooler)
        cluster.stop(0)
        cluster.stop(1)
        with pytest.raises(ServerUnreachable, match=r"embedding worker 0 .*: server . .* has not answered for 2 s"):
            look_up(pooler)


def test_another_job_is_refused(job: Job, pooling: EmbeddingWorkers) -> None:
    from pooling_jobs import job_with

    other = job_with([*job.id_features, Categorical(name="z", table="a")], list(job.tables))
    pooler = RemotePooler(Plan.of(other), pooling.workers[0].address, patience=SOON)
    batch = {**some(), "z": some()["x"]}
    with pytest.raises(ServiceError, match="features or tables are not those of the job"):
        pooler.begin_lookup(pooler.prepare(batch, 2), train=True)()
    pooler.close()


def test_addresses_that_are_mixed_up_are_found(job: Job, pooling: EmbeddingWorkers) -> None:
    pooler = RemotePooler(Plan.of(job), pooling.workers[0].address, index=1, patience=SOON)
    with pytest.raises(ServiceError, match="says it is embedding worker 0"):
        look_up(pooler)
    pooler.close()


def test_a_request_that_comes_again_is_answered_from_what_was_done(
    pooling: EmbeddingWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same frames, twice: a network may repeat any message, long after.
    sent: list[Any] = []
    send = Exchange.send
    monkeypatch.setattr(
        Exchange, "send", lambda self, server, m, **o: sent.append((self, m)) or send(self, server, m, **o)
    )
    pooler, worker = pooling.connect(), pooling.workers[0]
    found = look_up(pooler)
    assert push(pooler, found, 1).ack.applied == 5
    pushed = next(m for e, m in sent if e is pooler._exchange and not isinstance(m, Lookup))
    again = worker.meters.again
    worker._later(lambda: worker._handle(b"nobody", pushed, Role.WORKER))
    assert soon(lambda: worker.meters.again == again + 1)
    assert (kept(worker), worker.meters.common.applied) == (0, 5)


def test_a_batch_whose_vectors_are_larger_than_a_message_is_refused_with_both_sizes(job: Job, cluster: Cluster) -> None:
    from satrap.wire import Limits

    with EmbeddingWorkers(Plan.of(job), cluster, limits=Limits(frame_bytes=6000)) as pooling:
        pooler = pooling.connect()
        batch = {"x": lists(*[[1]] * 200), "s": lists(*[[5, 6]] * 200)}
        with pytest.raises(StoreError, match="vectors of 200 samples have 6400 bytes, the limit of a message is 6000"):
            pooler.begin_lookup(pooler.prepare(batch, 200), train=True)()


def test_it_is_open_to_other_machines_only_with_keys(job: Job, cluster: Cluster) -> None:
    with pytest.raises(ServiceError, match=r"give embedding worker 0 keys"):
        EmbeddingWorker(Plan.of(job), cluster.placement, bind="tcp://0.0.0.0:*", threads=1)
    with pytest.raises(ServiceError, match=r"embedding worker 2 .* is on another machine"):
        RemotePooler(Plan.of(job), "tcp://10.9.8.7:5", index=2)


def test_workers_keys_are_admitted_on_both_legs_and_readers_are_not(job: Job, tmp_path: Path) -> None:
    keys = Keys.new()
    worker, reader = keys.client(Role.WORKER), keys.client(Role.READER)
    with (
        Cluster(job.resolved_tables(), servers=1, seed=job.seed, keys=keys.server) as cluster,
        EmbeddingWorkers(Plan.of(job), cluster, keys=keys.server, own_keys=worker) as pooling,
    ):
        pooler = pooling.connect(keys=worker)
        assert push(pooler, look_up(pooler), 1).ack.applied == 5
        with pytest.raises(ServiceError, match="needs the role worker, this key has the role reader"):
            look_up(pooling.connect(1, keys=reader))
        stranger = pooling.connect(2, keys=Keys.new().client(Role.WORKER))
        with pytest.raises(ServiceError, match=r"embedding worker 0 .* takes no connection: it has another key"):
            look_up(stranger)


def test_metrics_tell_what_it_did(pooling: EmbeddingWorkers) -> None:
    pooler = pooling.connect()
    found = look_up(pooler)
    push(pooler, found, 1)
    look_up(pooler)
    text = pooling.workers[0].metrics()
    for line in (
        "satrap_samples_pooled_total 4",
        "satrap_ids_total 12",
        "satrap_rows_pulled_total 10",
        "satrap_gradients_applied_total 5",
        "satrap_batches_kept 1",
        "satrap_clients 1",
        'satrap_request_seconds_count{kind="Lookup"} 2',
        'satrap_request_seconds_count{kind="PushPooled"} 1',
    ):
        assert line in text.splitlines()


def test_stages_of_training_are_counted_and_those_of_evaluation_are_not(pooling: EmbeddingWorkers) -> None:
    def told() -> dict[str, float]:
        said = Scrape.of(pooling.workers[0].metrics()).values["satrap_stage_seconds_total"]
        return {dict(labels)["stage"]: seconds for labels, seconds in said.items()}

    pooler = pooling.connect()
    look_up(pooler, train=False)
    assert set(told().values()) == {0.0}
    found = look_up(pooler)
    looked_up = told()
    assert {s for s, seconds in looked_up.items() if seconds} >= {"dedup", "pull", "pool"}
    assert looked_up["unpool"] == looked_up["push"] == 0.0
    push(pooler, found, 1)
    pushed = told()
    assert min(pushed.values()) > 0
    # Another worker's stages are added: the figures are of the process.
    look_up(pooling.connect(1))
    assert told()["dedup"] > pushed["dedup"]
    cpu = Scrape.of(pooling.workers[0].metrics()).values["satrap_stage_cpu_seconds_total"]
    assert {dict(labels)["stage"] for labels in cpu} == {"dedup", "pull", "pool", "unpool", "push"}


def test_stopping_it_ends_the_requests_under_way(job: Job, cluster: Cluster) -> None:
    with EmbeddingWorkers(Plan.of(job), cluster) as pooling:
        poolers = [pooling.connect(c) for c in range(2)]
        found = look_up(poolers[0])
        look_up(poolers[1])
        waits = poolers[0].begin_push(found, ones(found), epoch=0, seq=1, merge=2)
        assert soon(lambda: sum(s.under_way for s in pooling.workers[0]._sessions.values()) == 1)
        pooling.workers[0].stop()
        with pytest.raises(ServerLost, match=r"embedding worker 0 .*: it was stopped"):
            waits()
    assert np.all([s.service.held <= 1 for s in cluster.servers])


def ask(worker: EmbeddingWorker, frames: list[Any]) -> Failure:
    """What it answers to frames of a socket that says nothing else."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(worker.address)
        socket.send_multipart(frames)
        assert socket.poll(10_000)
        answer = decode(socket.recv_multipart())
    assert isinstance(answer, Failure)
    return answer


def test_what_is_no_request_to_it_gets_a_failure_and_it_goes_on(job: Job, pooling: EmbeddingWorkers) -> None:
    worker = pooling.workers[0]
    batch = pooling.connect().prepare(some(), 2).fields
    noise = [b"", b"STRP", bytes(40), b"x" * 100]
    for frames in ([n] for n in noise):
        assert ask(worker, frames).code is Code.MALFORMED
    stranger = encode(Lookup(request=1, session=5, turn=1, seen=0, **batch))
    assert ask(worker, stranger).code is Code.HELLO_FIRST
    assert ask(worker, encode(Clear(request=1))).code is Code.MALFORMED
    pooler = pooling.connect()
    assert push(pooler, look_up(pooler), 1).ack.applied == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lookup": 9}, "gradients of lookup 9 of client 0, which is not kept"),
        ({"merge": 0}, "a push merges 1 or more, got 0"),
        ({"lr_factor": float("nan")}, "lr_factor must be a finite number"),
        ({"sections": (), "gradients": np.empty(0, np.uint8), "lookup": 0, "merge": 0}, "merges 1 or more"),
    ],
)
def test_gradients_that_do_not_fit_are_refused_with_no_row_changed(
    change: dict[str, Any], says: str, cluster: Cluster, pooling: EmbeddingWorkers
) -> None:
    pooler = pooling.connect()
    found = look_up(pooler)
    fields = {"lookup": found.kept, "epoch": 0, "seq": 1, **pack_gradients(pooler._plan, ones(found), found.masks)}
    for _ in range(8):
        look_up(pooler, train=False)  # so that a lookup 9 was there, though not to be learned from
    _, call = pooler._send(PushPooled, **{**fields, **change})
    with pytest.raises(StoreError, match=says):
        pooler._answer(call, PooledAck)
    assert all(not s.service.clients() for s in cluster.servers)


def test_gradients_of_another_shape_are_refused_by_both_shapes(pooling: EmbeddingWorkers) -> None:
    # Flaw 1 of earlier systems: a flat array of floats, and every row after a missing one gets another's.
    pooler = pooling.connect()
    found = look_up(pooler)
    wrong = (Section(0, 3, 2), Section(1, 3, 3))
    _, call = pooler._send(
        PushPooled, lookup=found.kept, epoch=0, seq=1, sections=wrong, gradients=np.zeros(60, np.uint8)
    )
    with pytest.raises(WireError, match="part 0 of a batch's vectors has 3 rows of 2 as fp32, expected 2 of 2"):
        pooler._answer(call, PooledAck)
