"""The parts benchmarks are built from: figures are only as good as the meter, the rounds and the data behind them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import Reading, interleave, ratio
from benchmarks.peers.loop import Metered
from benchmarks.synthetic import CATEGORICAL, NUMERIC, Clicks, Sizes, auc, ensure


def test_noisy_turn_is_repeated_and_the_quietest_try_counts() -> None:
    # Bug: a figure taken while another process had the core would enter the median.
    noise = iter([0.0, 0.9, 0.1, 0.8, 0.7, 0.9])
    wall = iter([9.0, 5.0, 1.0, 5.0, 2.0, 6.0])
    sides = interleave({"a": lambda: Reading(next(wall), 1.0, next(noise), 0.0)}, rounds=2, repeats_max=2)
    assert sides["a"].seconds == [1.0, 2.0]
    assert sides["a"].noisy_rounds == 1
    assert sides["a"].other_cores == 0.7


def test_every_round_starts_with_another_side() -> None:
    # Bug: the side that always came second would always find warm caches.
    order: list[str] = []

    def side(name: str) -> Reading:
        order.append(name)
        return Reading(1.0, 1.0, 0.0, 0.0)

    interleave({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2)
    assert order == ["a", "b", "a", "b", "b", "a"]


def test_ratio_is_the_median_of_neighbours_and_above_one_when_ours_is_faster() -> None:
    # Bug: a ratio of medians compares rounds that ran at different times of a noisy day.
    assert ratio([1.0, 10.0, 1.0], [2.0, 20.0, 30.0]) == 2.0


def test_meter_covers_exactly_the_steps_after_the_warm_up() -> None:
    metered = Metered(batch=10, warm_steps=2, metered_steps=3)
    for _ in range(5):
        metered.begin_step()
    assert metered.figures is None, "the fifth metered boundary is the beginning of step 5"
    metered.begin_step()
    assert metered.figures is not None
    assert metered.figures["samples"] == 30


def test_blocks_are_the_same_whenever_they_are_made_and_differ_from_each_other() -> None:
    first, again = Clicks(divide=100).block("train", 3, 1000), Clicks(divide=100).block("train", 3, 1000)
    other, test = Clicks(divide=100).block("train", 4, 1000), Clicks(divide=100).block("test", 3, 1000)
    assert np.array_equal(first.ranks, again.ranks)
    assert np.array_equal(first.label, again.label)
    assert not np.array_equal(first.ranks, other.ranks)
    assert not np.array_equal(first.ranks, test.ranks)


def test_ids_of_a_feature_never_collide() -> None:
    clicks = Clicks(divide=100)
    ids = np.concatenate([clicks.ids(f, np.arange(v)) for f, v in enumerate(clicks.vocabularies)])
    assert len(np.unique(ids)) == sum(clicks.vocabularies)


def test_labels_follow_the_probability_that_is_told() -> None:
    block = Clicks(divide=100).block("train", 0, 60_000)
    for low in (0.0, 0.2, 0.4, 0.6):
        chosen = (block.probability >= low) & (block.probability < low + 0.2)
        assert abs(block.label[chosen].mean() - block.probability[chosen].mean()) < 0.03


def test_parquet_and_arrays_hold_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    # Bug: a peer trained on other rows than satrap would make every comparison void.
    data = ensure(tmp_path, Sizes(train_rows=3_000, test_rows=500, divide=1000))
    table = pq.read_table(data.train[0])
    assert table.column_names == ["label", *NUMERIC, *CATEGORICAL]
    rows = np.load(data.arrays / "train_rows.npy")
    assert np.array_equal(np.load(data.arrays / "train_label.npy"), table["label"].to_numpy())
    assert np.array_equal(np.load(data.arrays / "train_numbers.npy")[:, 4], table["I5"].to_numpy())
    for f in (0, 25):
        ids = table[f"C{f + 1}"].to_numpy().view(np.uint64)
        known = np.sort(Clicks(divide=1000).ids(f, np.arange(Clicks(divide=1000).vocabularies[f])))
        assert np.array_equal(known[rows[f]], ids)


def test_auc_counts_equal_scores_half() -> None:
    label, score = np.array([0, 1, 0, 1], np.int8), np.array([0.1, 0.5, 0.5, 0.9], np.float32)
    assert auc(label, score) == pytest.approx(3.5 / 4)
