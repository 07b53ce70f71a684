"""Training over parameter servers: the bits of one process for any number of servers, and workers in processes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import click_job, random_batches
from test_equivalence import jobs, train_with_satrap
from workers import Workers

from satrap import checkpoint, models
from satrap.ps import LocalService, Placement, RemoteService
from satrap.schema import Checkpointing, Store, override
from satrap.testing import Cluster
from satrap.train import TorchGroup, Trainer, listen


def cluster_of(job, servers):
    return Cluster(job.resolved_tables(), servers=servers, partitions=job.store.partitions, seed=job.seed)


def eight_partitions(job):
    return msgspec.structs.replace(job, store=Store(partitions=8, threads=1))


@pytest.mark.parametrize("staleness", [0, 3])
def test_model_is_the_same_to_the_bit_in_one_process_and_on_any_number_of_servers(tmp_path, staleness):
    options = {"staleness": staleness, "epochs": 2, "eval_every_steps": 7, "checkpoint": Checkpointing(every_steps=11)}
    job = eight_partitions(click_job(tmp_path, **options))

    def digest(name, service):
        trainer = Trainer(job, run_dir=tmp_path / name, service=service, progress=False, plots=False)
        return checkpoint.digest(trainer.fit().checkpoint)

    expected = digest("local", None)
    for servers in (1, 2, 3, 8):
        with cluster_of(job, servers) as cluster:
            assert digest(f"s{servers}", cluster.connect()) == expected


@settings(max_examples=25, deadline=None)
@given(job=jobs(), servers=st.sampled_from([1, 2, 3, 8]), staleness=st.sampled_from([0, 2]), seed=st.integers(0, 9999))
def test_any_job_has_the_same_losses_and_rows_to_the_bit_on_servers(job, servers, staleness, seed):
    # Ids without a row on some server, tables of other dims in one message, a batch that asks one server for nothing.
    job = msgspec.structs.replace(job, train=msgspec.structs.replace(job.train, staleness=staleness))
    batches = random_batches(job, [5, 3, 6, 1], seed, vocabulary=9)
    tables = job.resolved_tables()
    torch.manual_seed(job.seed)
    model = models.build(job)
    replica = copy.deepcopy(model)
    local = LocalService(tables, seed=job.seed, partitions=8, threads=1)
    with Cluster(tables, servers=servers, partitions=8, seed=job.seed) as cluster:
        remote = cluster.connect()
        assert train_with_satrap(job, replica, batches, remote) == train_with_satrap(job, model, batches, local)
        for a, b in zip(model.parameters(), replica.parameters(), strict=True):
            assert torch.equal(a, b)
        for t in tables:
            for p in range(8):
                ours, theirs = local.export_rows(t.name, p), remote.export_rows(t.name, p)
                assert np.array_equal(ours.ids, theirs.ids)
                assert ours.values.tobytes() == theirs.values.tobytes()
                assert ours.state.tobytes() == theirs.state.tobytes()


@pytest.mark.parametrize("staleness", [0, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_several_workers_have_the_same_bits_on_any_number_of_servers(tmp_path, world, staleness):
    # With staleness: two of the runs would differ if a lookup saw more or fewer of the others' pushes by chance.
    job = eight_partitions(override(click_job(tmp_path, rows=307, staleness=staleness), ["model.dropout=0"]))
    expected = checkpoint.digest(Workers(job, world, tmp_path / "local").result.checkpoint)
    for servers in (1, 3):
        with cluster_of(job, servers) as cluster:
            workers = Workers(job, world, tmp_path / f"s{servers}", services=cluster.connect)
            assert checkpoint.digest(workers.result.checkpoint) == expected
            assert workers.result.gradients["applied"] == workers.result.gradients["sent"]


def test_hybrid_workers_on_servers_lose_no_gradient(tmp_path):
    job = eight_partitions(override(click_job(tmp_path, staleness=3), ["model.dropout=0"]))
    with cluster_of(job, 2) as cluster:
        workers = Workers(job, 2, tmp_path / "run", services=cluster.connect)
    assert workers.result.gradients["applied"] == workers.result.gradients["sent"] > 0
    assert workers.result.gradients["duplicates"] == 0


def worker(rank, world, address, listener, placement, folder, run, resume, interrupt_at, results):
    """One worker in a process of its own."""
    job = eight_partitions(click_job(Path(folder), epochs=2))
    group = TorchGroup(rank, world, address, listener=listener)
    with RemoteService(job.resolved_tables(), placement, seed=job.seed, client=rank) as service:
        trainer = Trainer(job, run_dir=run, service=service, group=group, progress=False, plots=False)
        if interrupt_at is not None and rank == 1:
            from satrap.train.run import Run

            step = Run._step

            def interrupted(self, lookup, leg, agreed):
                if self.state.step == interrupt_at:
                    os.kill(os.getpid(), signal.SIGINT)
                step(self, lookup, leg, agreed)

            Run._step = interrupted
        result = trainer.fit(resume=resume)
    results.put((rank, result.stopped, result.steps, result.test and result.test.auc))
    group.close()
    sys.exit(0)


def train_in_processes(job, folder, run, *, world=2, servers=2, resume=False, interrupt_at=None):
    """Trains `click_job` on servers of this process by workers in processes; their outcomes by rank."""
    context = multiprocessing.get_context("spawn")
    listener, address = listen()
    results = context.Queue()
    with cluster_of(job, servers) as cluster:
        placement: Placement = cluster.placement
        processes = [
            context.Process(
                target=worker,
                args=(
                    rank,
                    world,
                    address,
                    listener if rank == 0 else None,
                    placement,
                    str(folder),
                    str(run),
                    resume,
                    interrupt_at,
                    results,
                ),
            )
            for rank in range(world)
        ]
        for p in processes:
            p.start()
        listener.close()
        for p in processes:
            p.join(600)
        assert [p.exitcode for p in processes] == [0] * world
    return sorted(results.get(timeout=240) for _ in range(world))


def test_workers_in_processes_stop_on_a_signal_to_one_and_go_on_to_the_same_bits(tmp_path):
    # With dropout: each worker's own random numbers must go on as well.
    job = eight_partitions(click_job(tmp_path, epochs=2))
    whole = train_in_processes(job, tmp_path, tmp_path / "whole")
    assert [outcome[1] for outcome in whole] == ["done", "done"]
    assert whole[0][2:] == whole[1][2:]
    stopped = train_in_processes(job, tmp_path, tmp_path / "run", interrupt_at=6)
    assert [outcome[1:3] for outcome in stopped] == [("interrupted", 8)] * 2
    resumed = train_in_processes(job, tmp_path, tmp_path / "run", resume=True)
    assert resumed == whole
    digests = {checkpoint.digest(checkpoint.latest(tmp_path / name)) for name in ("whole", "run")}
    assert len(digests) == 1
