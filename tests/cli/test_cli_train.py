"""From a job file to a trained, evaluated, saved model, and what one can do with it, as a user runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from cli_command import JOB, Outcome, Satrap, call, click_table

from satrap.schema import load_job


@dataclass(frozen=True)
class Trained:
    """One finished run that the tests below look at and do not change."""

    home: Path
    run: Path
    outcome: Outcome


@pytest.fixture(scope="module")
def trained(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("trained")
    (home / "job.yaml").write_text(JOB.format(data=clicks))
    outcome = call(home, "train", "job.yaml", "--run-dir", "run", "--epochs", "3")
    return Trained(home, home / "run", outcome)


def test_training_ends_in_a_table_of_results_and_places(trained: Trained) -> None:
    table = trained.outcome.out
    for name in ("test AUC", "test log loss", "valid AUC", "samples/s", "rows", "bytes a row", "checkpoint", "plots"):
        assert name in table, f"{name} is missing in\n{table}"
    assert "on 1,000 samples" in table
    assert "3 epochs" in table


def test_the_model_has_learnt_something(trained: Trained) -> None:
    figures = json.loads(
        call(trained.home, "evaluate", "run", load_job(trained.run / "job.yaml").data.test[0], "--json").out
    )
    assert figures["auc"] > 0.65
    assert figures["samples"] == 1000


def test_the_run_folder_holds_job_log_events_plots_and_checkpoints(trained: Trained) -> None:
    assert load_job(trained.run / "job.yaml").train.epochs == 3
    assert (trained.run / "metrics.jsonl").stat().st_size > 0
    assert any((trained.run / "events").iterdir())
    assert {p.suffix for p in (trained.run / "plots").iterdir()} == {".png"}
    assert [p.name for p in (trained.run / "checkpoints").glob("step-*")]


def test_the_default_run_folder_is_named_for_the_job(called: Satrap, clicks: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(data=clicks))
    called("train", "job.yaml", "train.max_steps=2", "name=mine")
    assert [p.name.rsplit("-", 2)[0] for p in (tmp_path / "runs").iterdir()] == ["mine"]


def test_evaluate_shows_a_table_of_metrics(trained: Trained, clicks: Path) -> None:
    table = call(trained.home, "evaluate", "run", clicks / "test.parquet").out
    assert all(name in table for name in ("AUC", "log loss", "normalized entropy", "calibration", "1,000"))


def test_predictions_keep_the_order_of_the_rows(trained: Trained, clicks: Path, tmp_path: Path) -> None:
    table = pq.read_table(clicks / "test.parquet")
    pq.write_table(table.take(np.arange(999, -1, -1)), tmp_path / "backwards.parquet")
    call(trained.home, "predict", "run", clicks / "test.parquet", "--out", tmp_path / "a.parquet")
    call(trained.home, "predict", "run", tmp_path / "backwards.parquet", "--out", tmp_path / "b.parquet")
    forwards, backwards = (pq.read_table(tmp_path / f"{x}.parquet")["score"].to_numpy() for x in "ab")
    assert len(forwards) == 1000
    assert np.ptp(forwards) > 0.1
    np.testing.assert_allclose(forwards, backwards[::-1], rtol=0, atol=1e-6)


def test_predictions_carry_columns_along_and_need_no_label(trained: Trained, clicks: Path, tmp_path: Path) -> None:
    table = pq.read_table(clicks / "test.parquet").drop_columns(["click"])
    pq.write_table(table.slice(0, 600), tmp_path / "p1.parquet", row_group_size=77)
    pq.write_table(table.slice(600), tmp_path / "p2.parquet")
    words = ["predict", "run", tmp_path / "p*.parquet", "--keep", "user", "--keep", "genres", "--out"]
    said = call(trained.home, *words, tmp_path / "scores.parquet").out
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.column_names == ["user", "genres", "score"]
    assert scores["user"].to_pylist() == table["user"].to_pylist()
    assert scores["genres"].to_pylist() == table["genres"].to_pylist()
    assert "1,000 scores" in said


def test_predictions_can_be_csv(trained: Trained, clicks: Path, tmp_path: Path) -> None:
    call(trained.home, "predict", "run", clicks / "test.parquet", "--keep", "item", "--out", tmp_path / "scores.csv")
    scores = pacsv.read_csv(tmp_path / "scores.csv")
    assert scores.column_names == ["item", "score"]
    assert scores["item"].to_pylist() == pq.read_table(clicks / "test.parquet")["item"].to_pylist()
    assert 0 <= min(scores["score"].to_pylist()) < max(scores["score"].to_pylist()) <= 1


@pytest.mark.parametrize("ending", ["json", "parquet.gz"])
def test_an_output_of_another_format_is_wrong_usage(ending: str, trained: Trained, clicks: Path) -> None:
    outcome = call(trained.home, "predict", "run", clicks / "test.parquet", "--out", f"scores.{ending}", code=2)
    assert "must be .parquet or .csv" in outcome.err


def test_a_failed_prediction_leaves_no_file_and_spares_the_old_one(
    trained: Trained, clicks: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    out.write_text("older")
    words = ["predict", "run", clicks / "test.parquet", "--out", out, "--keep", "usre"]
    assert "did you mean 'user'?" in call(trained.home, *words, code=1).err
    assert out.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]


def test_inspect_shows_tables_rows_steps_and_position(trained: Trained) -> None:
    table = call(trained.home, "inspect", "run").out
    assert all(name in table for name in ("user", "item", "genre", "adagrad", "step", "goes on at", "on disk"))


def test_inspect_as_json_counts_the_rows(trained: Trained) -> None:
    found = json.loads(call(trained.home, "inspect", "run", "--json").out)
    rows = {t["name"]: t["rows"] for t in found["tables"]}
    assert rows == {"user": 50, "item": 30, "genre": 7}
    assert found["step"] > 0


def test_a_digest_is_one_line_and_the_same_for_the_same_job(trained: Trained, called: Satrap, tmp_path: Path) -> None:
    digest = call(trained.home, "inspect", "run", "--digest").out
    assert len(digest.split()) == 1
    called("train", trained.run / "job.yaml", "--run-dir", "again", "store.threads=1", "--quiet")
    assert called("inspect", "again", "--digest").out == digest
    called("train", trained.run / "job.yaml", "--run-dir", "other", "seed=5", "--quiet")
    assert called("inspect", "other", "--digest").out != digest


def test_validate_names_what_it_has_checked(trained: Trained) -> None:
    said = call(trained.home, "validate", "job.yaml").out
    assert "data.train: 1 file with all the columns" in said
    assert "job.yaml is valid." in said


def test_validate_says_so_where_the_files_are_elsewhere(called: Satrap, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(data="elsewhere"))
    said = called("validate", "job.yaml").out
    assert "data.train: the files are not here" in said
    assert "job.yaml is valid as far as that can be seen without its data." in " ".join(said.split())


def test_a_dry_run_trains_nothing(trained: Trained, called: Satrap, tmp_path: Path) -> None:
    said = called("train", trained.home / "job.yaml", "--dry-run", "train.staleness=7").out
    assert "staleness 7" in said
    assert not (tmp_path / "runs").exists()


def test_quiet_prints_results_only(trained: Trained, called: Satrap) -> None:
    outcome = called("train", trained.home / "job.yaml", "--quiet", "train.max_steps=2")
    first = next(x for x in outcome.out.splitlines() if x.strip())
    assert first.strip().endswith("trained")
    assert outcome.err == ""


def test_a_second_run_into_the_same_folder_is_refused(trained: Trained) -> None:
    # It would mix two runs' checkpoints.
    outcome = call(trained.home, "train", "job.yaml", "--run-dir", "run", code=1)
    assert "already holds the checkpoints of a run" in outcome.err


def test_two_labels_have_a_score_column_each(called: Satrap, tmp_path: Path) -> None:
    table = click_table(600)
    table = table.append_column("buy", pa.array([u > "u2" for u in table["user"].to_pylist()]))
    pq.write_table(table, tmp_path / "a.parquet")
    words = ["--label", "click", "--label", "buy", "train.batch_size=100", "--test", "a.parquet"]
    called("train", "a.parquet", *words, "--run-dir", "run")
    assert "buy: AUC" in called("evaluate", "run", "a.parquet").out
    assert set(json.loads(called("evaluate", "run", "a.parquet", "--json").out)["labels"]) == {"click", "buy"}
    called("predict", "run", "a.parquet", "--out", "scores.parquet")
    assert pq.read_table(tmp_path / "scores.parquet").column_names == ["score_click", "score_buy"]


def test_a_kept_column_may_not_have_the_name_of_the_score(trained: Trained, clicks: Path) -> None:
    words = ["predict", "run", clicks / "test.parquet", "--out", "scores.parquet", "--keep", "score"]
    assert "the output already has a column of that name" in call(trained.home, *words, code=2).err


def test_profile_says_where_the_time_went_and_leaves_it_in_the_run_folder(
    called: Satrap, clicks: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(data=clicks))
    done = called("train", "job.yaml", "--quiet", "--profile", "--run-dir", "run", "train.log_every_steps=5")
    assert "forward, backward, optimizer" in done.out
    assert "The dense network" in done.out
    run = tmp_path / "run"
    assert "dense" in (run / "profile.txt").read_text()
    spans = {e["name"] for e in json.loads((run / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"}
    assert {"read", "decode", "dedup", "pull", "pool", "dense", "unpool", "push"} <= spans


def test_log_has_seconds_by_stage_that_add_up_to_the_whole_with_and_without_profile(
    called: Satrap, clicks: Path, tmp_path: Path
) -> None:
    # A stage whose counter restarts, or counts evaluations too, would be told wrong in the report.
    (tmp_path / "job.yaml").write_text(JOB.format(data=clicks))
    called("train", "job.yaml", "--quiet", "--run-dir", "run", "train.log_every_steps=1", "train.max_steps=12")
    assert not (tmp_path / "run" / "profile.txt").exists()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = sum(r["stages_s"].get("dense", 0.0) for r in records if r["kind"] == "train")
    end = records[-1]
    assert end["kind"] == "end"
    assert logged == pytest.approx(end["stages_s"]["dense"], rel=1e-3)
    (worker,) = end["profile"]["workers"]
    assert 0 < worker["stages"]["dense"] <= worker["training_s"]
    assert sum(end["staleness"]) == end["gradients"]["applied"]
    assert set(end["tables"]) == set(end["hot_ids"]) == {"user", "item", "genre"}
    assert sum(t["rows"] for t in end["tables"].values()) == end["size"]["rows"]
