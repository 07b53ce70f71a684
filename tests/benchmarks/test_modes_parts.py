"""Paired intervals, the pairing of runs, and pieces of a long list that are not done twice."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.modes_cases import Case, missing
from benchmarks.modes_run import by_heat, progressive
from benchmarks.modes_stats import Interval, paired
from benchmarks.modes_theory import regret

from benchmarks import modes
from satrap.ps.heat import Heat


def test_interval_of_known_values_is_students() -> None:
    # By hand: mean 3, standard deviation sqrt(2.5), t(4) = 2.776.
    interval = Interval.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (interval.mean, interval.n) == (3.0, 5)
    assert interval.half == pytest.approx(2.776 * np.sqrt(2.5 / 5))


def test_staleness_by_heat_is_that_of_all_servers_and_weighted_over_seeds() -> None:
    # Bug: a mean of means would let a server, or a seed, with ten hot rows weigh as much as one with a million.
    one, other = Heat(), Heat()
    one.counts[0, 2], other.counts[0, 6], other.counts[4, 8] = 3, 1, 5
    found = by_heat([one, other])["staleness_by_heat"]
    assert found == {
        "0-3": {"gradients": 4, "mean": 3.0, "p99": 6},
        "256+": {"gradients": 5, "mean": 8.0, "p99": 8},
    }
    rare = {"staleness_by_heat": {"256+": {"gradients": 15, "mean": 4.0, "p99": 9}}}
    runs = {Case("ml-1m", 0, 8): {"staleness_by_heat": found}, Case("ml-1m", 1, 8): rare, Case("ml-1m", 0, 4): rare}
    assert modes.heats(runs, Case("ml-1m", 0, 8)) == {"0-3": 3.0, "256+": 5.0}


def test_one_value_has_no_interval() -> None:
    # An interval of zero width would call a single run certain.
    assert Interval.of([2.0]) == Interval(2.0, None, 1)


def test_differences_are_of_the_same_seeds_only() -> None:
    # A mean over other seeds would bring their own spread into the difference.
    assert paired({0: 1.0, 1: 5.0, 2: 9.0}, {1: 4.0, 2: 7.0, 3: 100.0}) == Interval.of([1.0, 2.0])
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_every_run_is_compared_with_the_one_that_differs_in_what_is_asked() -> None:
    hybrid = Case("synthetic", 3, 8, batch=64)
    sync = replace(hybrid, staleness=0)
    assert modes.base_of(hybrid) == sync
    assert modes.base_of(replace(hybrid, dense_mode="async")) == sync
    assert modes.base_of(replace(hybrid, overrides=modes.RAW)) == sync
    assert modes.base_of(replace(hybrid, overrides=("train.epochs=2",))) == replace(sync, overrides=("train.epochs=2",))
    assert modes.base_of(replace(hybrid, wire="int8")) == hybrid
    found = {replace(c, seed=s): {"test_auc": 0.5 + 0.1 * (c == hybrid) + s} for c in (sync, hybrid) for s in (0, 1)}
    intervals = [i for _, _, i in modes.compared(found) if i is not None]
    assert [(round(i.mean, 6), i.n) for i in intervals] == [(0.1, 2)]


def test_progressive_auc_is_of_each_window_by_itself() -> None:
    label = np.array([0, 1, 0, 1, 0], np.int8)
    logits = np.array([0.1, 0.9, 0.9, 0.1, 0.0], np.float32)
    assert progressive(label, logits, 2) == [(2, 1.0), (4, 0.0)]


def test_runs_in_the_file_of_results_are_not_done_again(tmp_path, monkeypatch, capsys) -> None:
    done = []
    monkeypatch.setattr(modes, "run", lambda case, *_, **__: done.append(case.seed) or {"test_auc": 0.6})
    options = modes._parse(["--results", str(tmp_path / "runs.jsonl")])
    cases = [Case("synthetic", seed, 0) for seed in range(3)]
    modes.perform(cases[:2], None, options, modes.SMOKE)
    found = modes.perform(cases, None, options, modes.SMOKE)
    assert done == [0, 1, 2]
    assert list(found) == cases
    options.limit_s = -1.0
    assert modes.perform([*cases, Case("synthetic", 9, 0)], None, options, modes.SMOKE).keys() == set(cases)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["left"] == 1


def test_absent_data_is_named(tmp_path) -> None:
    assert missing("synthetic", None) is None
    assert "--real-data" in missing("ml-1m", None)
    assert "train.parquet is not there" in missing("ml-1m", tmp_path)


def test_what_staleness_costs_grows_with_its_product_with_the_frequency() -> None:
    # The theory's study would show nothing if its error did not follow staleness.
    def extra(staleness: int, alpha: float) -> float:
        return regret(staleness, alpha, steps=200, seed=1) - regret(0, alpha, steps=200, seed=1)

    assert 0 < extra(2, 0.2) < extra(8, 0.2) < extra(8, 0.4)
