"""`satrap export`, `satrap import`, checkpoints at a URL, and saves that fail, as commands."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from cli_command import JOB, PLAIN, Satrap
from typer.testing import CliRunner

from satrap import checkpoint
from satrap.cli import app
from satrap.data.hashing import hash_strings
from satrap.testing.faulty_objects import FaultyObjects, unavailable


@pytest.fixture
def job(tmp_path: Path, clicks: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(data=clicks))
    return path


def test_rows_go_out_and_into_a_run_that_is_as_good(job: Path, called: Satrap, clicks: Path, tmp_path: Path) -> None:
    called("train", job, "--run-dir", "run", "-q")
    told = called("export", "run", "--out", "rows", "--state").out
    assert "user: 50 rows of 8 fp32" in told
    ids = set(pq.read_table(tmp_path / "rows" / "user")["id"].to_pylist())
    assert ids == set(hash_strings([f"u{i}" for i in range(50)]).tolist())
    told = called("import", job, "rows", "--run-dir", "again").out
    assert "train it with: satrap train --resume again" in told
    both = [json.loads(called("evaluate", run, clicks / "test.parquet", "--json").out) for run in ("run", "again")]
    assert both[0]["auc"] == both[1]["auc"] > 0.6
    called("train", "--resume", "again", "-q")
    assert json.loads(called("inspect", "again", "--json").out)["step"] > 0


@pytest.mark.parametrize("made_before", [False, True])
def test_an_export_that_fails_leaves_nothing_and_can_be_made_again(
    made_before: bool, job: Path, called: Satrap, tmp_path: Path
) -> None:
    # A damaged checkpoint left half an export behind, and the next try was refused: "it is there and not empty".
    called("train", job, "--run-dir", "run", "-q")
    if made_before:
        (tmp_path / "rows").mkdir()
    victim = sorted((tmp_path / "run/checkpoints").rglob("rows-*.satrap"))[-1]
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert victim.name in called("export", "run", "--out", "rows", code=1).err
    assert (tmp_path / "rows").exists() == made_before
    assert not list(tmp_path.glob("rows/*"))
    victim.write_bytes(content)
    assert "user: 50 rows" in called("export", "run", "--out", "rows").out


def test_a_state_dict_goes_in_by_the_names_of_tables_or_as_told(job: Path, called: Satrap, tmp_path: Path) -> None:
    weights = {"user": torch.rand(9, 8), "item": torch.rand(9, 8)}
    torch.save({f"bags.{t}.weight": w for t, w in weights.items()}, tmp_path / "model.pt")
    told = called("import", job, "model.pt", "--run-dir", "a").out
    assert "table 'genre': no rows given; it begins empty" in told
    called("import", job, "item=model.pt:bags.user.weight", "--run-dir", "b")
    for run, table, source in (("a", "user", "user"), ("a", "item", "item"), ("b", "item", "user")):
        called("export", run, "--out", f"{run}-{table}", "--table", table)
        rows = pq.read_table(tmp_path / f"{run}-{table}" / table).sort_by("id")
        assert torch.equal(torch.tensor(rows["values"].to_pylist()), weights[source])
    refused = [
        (("model.pt", "user=model.pt"), "table 'user' is given twice", 2),
        (("item=model.pt:nothing",), "it has no tensor 'nothing'", 1),
        (("genre=model.pt",), "none is named after table 'genre'. Say which: genre=model.pt:KEY", 1),
        (("nowhere",), "it has no export.json", 1),
    ]
    for words, message, code in refused:
        assert message in called("import", job, *words, "--run-dir", "c", code=code).err
    assert not (tmp_path / "c").exists()


def test_a_run_lists_its_checkpoints_and_commands_take_the_best(
    job: Path, called: Satrap, clicks: Path, tmp_path: Path
) -> None:
    settings = ["train.checkpoint.best=auc", "train.epochs=4", "train.embedding_optimizer.lr=2"]
    called("train", job, *settings, "--run-dir", "run", "-q")
    listed = json.loads(called("inspect", "run", "--json").out)["checkpoints"]
    assert [k["best"] for k in listed].count(True) == 1
    best = max(listed, key=lambda k: k.get("valid_auc", 0))
    assert best["best"]
    text = called("inspect", "run").out
    assert "valid AUC" in text
    assert "newest" in text
    # In a narrow window too each is one line with all that is told of it.
    with chdir(tmp_path):
        lines = CliRunner(env={**PLAIN, "COLUMNS": "80"}).invoke(app, ["inspect", "run"]).output.splitlines()
    for k in listed:
        (line,) = (x for x in lines if x.strip().startswith(f"step-{k['step']:08d} "))
        assert f"{k['valid_auc']:.4f}" in line
        assert "KiB" in line
    assert "valid AUC" not in called("inspect", "run/best").out
    for name, step in (("run/best", best["step"]), ("run/latest", listed[-1]["step"]), ("run", best["step"])):
        path = json.loads(called("evaluate", name, clicks / "test.parquet", "--json").out)["checkpoint"]
        assert path.endswith(f"step-{step:08d}")


def test_checkpoints_at_a_url_are_found_by_run_and_by_url(
    job: Path, called: Satrap, clicks: Path, tmp_path: Path
) -> None:
    checkpoint.use_filesystem("faulty://cli", FaultyObjects(), pause_s=0)
    called("train", job, "train.checkpoint.folder=faulty://cli/models", "--run-dir", "run", "-q")
    found = {called("inspect", where, "--digest").out for where in ("run", "faulty://cli/models/run", "run/latest")}
    assert len(found) == 1
    assert "faulty://cli/models/run/step-000000" in called("inspect", "run").out
    called("predict", "faulty://cli/models/run/latest", clicks / "test.parquet", "--out", "scores.csv")
    called("train", "--resume", "run", "--epochs", "2", "-q")
    # The run folder is lost with its machine: the URL is enough.
    before = called("inspect", "run/latest", "--digest").out
    shutil.rmtree(tmp_path / "run")
    called("train", "--resume", "faulty://cli/models/run", "-q")
    assert called("inspect", "runs/run/latest", "--digest").out == before
    called("train", "--resume", "runs/run", "--epochs", "3", "-q")
    shutil.move(tmp_path / "runs" / "run", tmp_path / "run")
    assert "a resumed run keeps" in called("train", "--resume", "run", "train.checkpoint.folder=x", code=1).err


def test_a_run_whose_model_could_not_be_saved_ends_with_an_error_after_its_table(job: Path, called: Satrap) -> None:
    def refuses(request: str, name: str, count: int) -> None:
        if request == "put":
            raise unavailable(request, name)

    checkpoint.use_filesystem("faulty://full", FaultyObjects(fail=refuses), pause_s=0)
    done = called("train", job, "train.checkpoint.folder=faulty://full/models", "--run-dir", "run", code=1)
    assert "test AUC" in done.out
    assert "saves failed" in done.out
    assert "the model as it ended is not saved: cannot save the checkpoint faulty://full/models/run/step-0" in done.err
    assert "satrap train --resume run" in done.err
