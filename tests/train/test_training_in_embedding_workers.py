"""Training with embedding workers: the bits of training without them, for any number of them, servers and workers."""

from __future__ import annotations

import msgspec
import pytest
from samples import click_job
from workers import Workers

from satrap import checkpoint
from satrap.errors import ServerLost, TrainingError
from satrap.pooling import LocalPooler, Plan
from satrap.ps import LocalService
from satrap.schema import Checkpointing, Store, override
from satrap.testing import Cluster, EmbeddingWorkers, Faults
from satrap.train import Trainer


def eight_partitions(job):
    return msgspec.structs.replace(job, store=Store(partitions=8, threads=1))


def cluster_of(job, servers, **options):
    return Cluster(job.resolved_tables(), servers=servers, partitions=job.store.partitions, seed=job.seed, **options)


@pytest.mark.parametrize("staleness", [0, 3])
def test_one_workers_model_is_the_same_to_the_bit_with_an_embedding_worker(tmp_path, staleness):
    # Evaluations and checkpoints between: lookups that are ahead at a drain are never pushed.
    options = {"staleness": staleness, "epochs": 2, "eval_every_steps": 7, "checkpoint": Checkpointing(every_steps=11)}
    job = eight_partitions(click_job(tmp_path, **options))

    def digest(name, **ways):
        trainer = Trainer(job, run_dir=tmp_path / name, progress=False, plots=False, **ways)
        result = trainer.fit()
        return checkpoint.digest(result.checkpoint), result.gradients, result.staleness_mean

    expected = digest("local")
    for servers in (1, 2):
        with cluster_of(job, servers) as cluster, EmbeddingWorkers(Plan.of(job), cluster) as pooling:
            assert digest(f"s{servers}", service=cluster.connect(), pooler=pooling.connect()) == expected
            kept = sum(s.kept for s in pooling.workers[0]._sessions.values())
            assert kept <= staleness + 1


@pytest.mark.parametrize(("world", "counts"), [(2, (1, 2)), (3, (1, 2, 3))])
def test_several_workers_have_the_same_bits_with_any_number_of_embedding_workers(tmp_path, world, counts):
    job = eight_partitions(override(click_job(tmp_path, rows=307), ["model.dropout=0", "train.staleness=0"]))
    expected = checkpoint.digest(Workers(job, world, tmp_path / "local").result.checkpoint)
    for servers in (1, 2):
        for count in counts:
            with cluster_of(job, servers) as cluster, EmbeddingWorkers(Plan.of(job), cluster, count=count) as pooling:
                workers = Workers(
                    job, world, tmp_path / f"s{servers}n{count}", services=cluster.connect, poolers=pooling.connect
                )
                assert checkpoint.digest(workers.result.checkpoint) == expected
                assert workers.result.gradients["applied"] == workers.result.gradients["sent"]


def test_bad_networks_on_both_legs_change_no_bit(tmp_path):
    job = eight_partitions(override(click_job(tmp_path, rows=307), ["model.dropout=0", "train.staleness=0"]))
    expected = checkpoint.digest(Workers(job, 2, tmp_path / "local").result.checkpoint)
    bad = Faults(drop=0.03, duplicate=0.1, reorder=0.2, spread_ms=5)
    with (
        cluster_of(job, 2, faults=bad) as cluster,
        EmbeddingWorkers(Plan.of(job), cluster, count=2, faults=bad) as pooling,
    ):
        workers = Workers(job, 2, tmp_path / "run", services=cluster.connect, poolers=pooling.connect)
        assert checkpoint.digest(workers.result.checkpoint) == expected
        assert sum(p.counts["dropped"] for p in pooling.proxies) > 0


def test_hybrid_workers_lose_no_gradient(tmp_path):
    job = eight_partitions(override(click_job(tmp_path, staleness=3), ["model.dropout=0"]))
    with cluster_of(job, 2) as cluster, EmbeddingWorkers(Plan.of(job), cluster, count=2) as pooling:
        workers = Workers(job, 2, tmp_path / "run", services=cluster.connect, poolers=pooling.connect)
    gradients = workers.result.gradients
    assert gradients["applied"] == gradients["sent"] > 0
    assert gradients["duplicates"] == 0
    assert workers.result.staleness_max <= 2 * 3 + 1 + 3


def test_a_resumed_run_has_the_bits_of_one_that_went_on(tmp_path):
    # Whoever resumes opens a session of its own: what the embedding worker knows of the servers' pushes begins anew.
    job = eight_partitions(click_job(tmp_path, epochs=2))

    def fit(name, *more, resume=False):
        with cluster_of(job, 2) as cluster, EmbeddingWorkers(Plan.of(job), cluster) as pooling:
            ways = {"service": cluster.connect(), "pooler": pooling.connect()}
            trainer = Trainer(override(job, more), run_dir=tmp_path / name, progress=False, plots=False, **ways)
            return checkpoint.digest(trainer.fit(resume=resume).checkpoint)

    whole = fit("whole")
    fit("run", "train.epochs=1")
    assert fit("run", resume=True) == whole


def test_an_embedding_worker_that_is_gone_ends_training_with_its_name(tmp_path):
    job = eight_partitions(click_job(tmp_path, epochs=50))
    with cluster_of(job, 1) as cluster, EmbeddingWorkers(Plan.of(job), cluster) as pooling:
        trainer = Trainer(
            job,
            run_dir=tmp_path / "run",
            service=cluster.connect(),
            pooler=pooling.connect(),
            progress=False,
            plots=False,
        )
        compute = trainer._dense.compute

        def computed(*arguments):
            if trainer.run.state.step == 5:
                pooling.restart(0)
            return compute(*arguments)

        trainer._dense.compute = computed
        with pytest.raises(ServerLost, match="embedding worker 0"):
            trainer.fit()


def test_a_pooler_without_the_rows_it_pools_is_refused(tmp_path):
    job = click_job(tmp_path)
    with pytest.raises(TrainingError, match="a pooler needs the service whose rows it pools"):
        Trainer(job, run_dir=tmp_path / "run", pooler=LocalPooler(Plan.of(job), LocalService.of(job)))
