"""Training with bounded tables: resumed, and on servers, the bits of the run in one piece and in one process."""

from __future__ import annotations

import shutil

import msgspec
import pytest
from samples import click_job

from satrap import checkpoint
from satrap.schema import Admission, Capacity, Checkpointing, Expiry, Store
from satrap.testing import Cluster
from satrap.train import Trainer

BOUNDS = {
    "user": {"expire": Expiry(steps=2)},
    "tags": {"capacity": Capacity(rows=24, evict="frequency"), "admit": Admission(sightings=2, window=400)},
    "history": {"capacity": Capacity(rows=16)},
}


def bounded(job):
    tables = tuple(msgspec.structs.replace(t, **BOUNDS[t.name]) for t in job.tables)
    return msgspec.structs.replace(job, tables=tables, store=Store(partitions=4, threads=1))


def fit(job, run_dir, **options):
    result = Trainer(job, run_dir=run_dir, progress=False, plots=False, **options).fit(resume=run_dir.exists())
    return result, checkpoint.digest(result.checkpoint)


def counts(stats):
    return stats.rows, stats.admitted, stats.evicted, stats.expired, stats.refused


@pytest.mark.parametrize("staleness", [0, 3])
def test_a_bounded_job_is_the_same_to_the_bit_resumed_and_on_any_number_of_servers(tmp_path, staleness):
    job = bounded(click_job(tmp_path, staleness=staleness, epochs=2, checkpoint=Checkpointing(every_steps=7, keep=99)))
    whole, expected = fit(job, tmp_path / "whole")
    user, tags, history = (whole.tables[t] for t in ("user", "tags", "history"))
    assert history.rows <= 16
    assert tags.rows <= 24
    assert history.evicted > 0
    assert user.expired > 0
    assert tags.refused > 0
    gradients = dict(whole.gradients)
    sent, applied = gradients.pop("sent"), gradients.pop("applied")
    assert sent == applied + sum(gradients.values())
    if staleness == 0:
        # With staleness an id may be seen again, and have its row, before its first gradient comes.
        assert gradients["refused_not_admitted"] > 0
        # A row pulled is there for its own push; what has no row, the pull did not make.
        assert (
            gradients["refused_not_admitted"] + gradients.get("refused_missing_row", 0)
            == history.refused + tags.refused
        )

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for path in checkpoint.checkpoints(tmp_path / "resumed"):
        if int(path.name[5:]) > 14:
            shutil.rmtree(path)
    resumed, digest = fit(job, tmp_path / "resumed")
    assert digest == expected
    assert [counts(s) for s in resumed.tables.values()] == [counts(s) for s in whole.tables.values()]
    for servers in (1, 3):
        with Cluster(job.resolved_tables(), servers=servers, partitions=4, seed=job.seed) as cluster:
            _, digest = fit(job, tmp_path / f"s{servers}", service=cluster.connect())
            assert digest == expected
