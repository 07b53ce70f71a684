"""`satrap calibrate` and `satrap plan` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_command import JOB, Satrap

from satrap.plan import load_cluster, load_constants, load_prices

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTERS = sorted((REPOSITORY / "deploy" / "clusters").glob("*.yaml"))
PRICES = REPOSITORY / "deploy" / "prices" / "google-us-central1.yaml"
CONSTANTS = REPOSITORY / "deploy" / "constants.yaml"


def test_what_was_measured_of_a_job_plans_it(called: Satrap, clicks: Path, tmp_path: Path) -> None:
    # The whole way: measure, read the file back, plan with the rows that the data had.
    (tmp_path / "job.yaml").write_text(JOB.format(data=clicks))
    called("calibrate", "job.yaml", "--quick", "--out", "constants.yaml")
    job = load_constants(tmp_path / "constants.yaml").job
    assert job is not None
    assert job.dense_us > 0
    assert job.dense_parameters == 3 * 8 * 16 + 16 + 16 + 16 + 1  # (8 + 8 + 8 + 1) x 16 + 16, 16 x 1 + 1
    assert {t.name: t.rows_seen for t in job.tables} == {"user": 50, "item": 30, "genre": 7}
    out = called(
        "plan",
        "job.yaml",
        "--cluster",
        REPOSITORY / "deploy/clusters/kind.yaml",
        "--constants",
        "constants.yaml",
        "--json",
    ).out
    plan = json.loads(out)
    assert plan["rows"] == 87
    assert plan["samples_per_s"] > 0
    assert not any("was not measured" in n for n in plan["notes"])


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda p: p.stem)
def test_every_cluster_in_the_repository_can_be_planned(called: Satrap, path: Path) -> None:
    load_cluster(path)
    called("plan", "--parameters", "1T", "--cluster", path, "--prices", PRICES, "--constants", CONSTANTS)


def test_the_plan_for_100_trillion_needs_12_machines_of_12_terabytes_at_most(called: Satrap) -> None:
    words = ("plan", "--parameters", "100T", "--dim", "128", "--format", "int8", "--prices", PRICES)
    out = called(
        *words, "--cluster", REPOSITORY / "deploy/clusters/gke-100t.yaml", "--constants", CONSTANTS, "--json"
    ).out
    plan = json.loads(out)
    assert plan["addressable_parameters"] == plan["materialised_parameters"] == 1e14
    assert plan["rows"] == 781.25e9
    assert plan["servers"]["machine"] == "m2-ultramem-416"
    assert plan["servers"]["count"] <= 12
    assert plan["servers"]["fits"]
    assert plan["tiered"]["fits"]
    assert 0 < plan["tiered"]["dollars_per_hour"] < plan["servers"]["dollars_per_hour"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--parameters", "1T"], "--cluster is missing"),
        (["--cluster", "c.yaml"], "--constants is missing: measure this machine"),
        (["--cluster", "c.yaml", "--constants", CONSTANTS, "--format", "int9"], "did you mean 'int8'"),
        (
            ["--cluster", "none.yaml", "--constants", CONSTANTS, "--parameters", "1T"],
            "there is no cluster file none.yaml",
        ),
        (["--cluster", "c.yaml", "--constants", CONSTANTS, "--parameters", "many"], "'many' is no quantity"),
        (["--cluster", "c.yaml", "--constants", CONSTANTS], "give a job file, or --parameters"),
        (["--cluster", "c.yaml", "--constants", CONSTANTS, "--parameters", "1T"], "servers.machine"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_message(
    called: Satrap, tmp_path: Path, words: list[str], says: str
) -> None:
    (tmp_path / "c.yaml").write_text("name: c\nservers: {machin: a}\nworkers: {machine: a}\n")
    if says == "servers.machine":
        says = "c.yaml: servers.machin: unknown key 'machin'; did you mean 'machine'"
    outcome = called("plan", *words, code=None)
    assert outcome.code in (1, 2)
    assert says in outcome.err


def test_a_machine_that_no_list_has_is_named(called: Satrap, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: c\nservers: {machine: m2-ultramem-41}\nworkers: {machine: a2-highgpu-8g}\n")
    words = ("plan", "--parameters", "1T", "--cluster", "c.yaml", "--prices", PRICES, "--constants", CONSTANTS)
    assert "did you mean 'm2-ultramem-416'" in called(*words, code=1).err


def test_servers_on_spot_machines_are_refused(called: Satrap, tmp_path: Path) -> None:
    # Bug: rows go with the machine when it is taken back.
    text = "name: c\nservers: {machine: m2-ultramem-416, spot: true}\nworkers: {machine: a2-highgpu-8g}\n"
    (tmp_path / "c.yaml").write_text(text)
    words = ("plan", "--parameters", "1T", "--cluster", "c.yaml", "--prices", PRICES, "--constants", CONSTANTS)
    assert "servers hold the rows" in called(*words, code=1).err


def test_the_price_list_says_of_when_and_where_it_is() -> None:
    prices = load_prices(PRICES)
    assert prices.date
    assert prices.source
    assert all(m.dollars_per_hour > 0 for m in prices.machines.values())
