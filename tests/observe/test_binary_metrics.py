from __future__ import annotations

import json
import math
import zlib
from base64 import b64encode

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from satrap.errors import TrainingError
from satrap.observe import BinaryMetrics
from satrap.observe.ranking import binned_auc, calibration_error, reliability


def auc_of_all_pairs(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """The definition: the weighted share of (positive, negative) pairs in the right order, ties one half."""
    p, n = labels > 0.5, labels < 0.5
    right = (scores[p][:, None] > scores[n]) + 0.5 * (scores[p][:, None] == scores[n])
    pairs = weights[p][:, None] * weights[n]
    return float((right * pairs).sum() / pairs.sum())


def clicks(n: int, seed: int = 0, std: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the logits they were drawn from: calibrated by construction."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1.2, std, n).astype(np.float32)
    return (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.float32), z


def filled(*batches: tuple[np.ndarray, ...], **options: int) -> BinaryMetrics:
    m = BinaryMetrics(**options)
    for labels, logits, *weights in batches:
        m.update(labels, logits, weights=weights[0] if weights else None)
    return m


plainly = settings(deadline=None, max_examples=60)

# Few distinct scores, so that ties are the rule; and neighbours in float32, which a sloppy bin function could swap.
some_scores = st.sampled_from([-30.0, -1.0, -0.0, 0.0, 1e-30, 0.5, float(np.nextafter(np.float32(0.5), 1)), 2.0, 3e4])
samples = st.lists(st.tuples(st.booleans(), some_scores, st.sampled_from([0.25, 1.0, 3.0])), min_size=2, max_size=40)
both_classes = samples.filter(lambda rows: len({y for y, _, _ in rows}) == 2)


@plainly
@given(both_classes)
@example([(True, 0.0, 1.0), (False, -0.0, 1.0)])
def test_exact_auc_equals_the_count_of_all_pairs(rows: list[tuple[bool, float, float]]) -> None:
    y, z = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows], np.float32)
    assert filled((y, z)).result().auc == pytest.approx(auc_of_all_pairs(y, z, np.ones(len(y))), abs=1e-12)


@plainly
@given(both_classes)
def test_weighted_exact_auc_equals_the_count_of_all_weighted_pairs(rows: list[tuple[bool, float, float]]) -> None:
    y, z = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows], np.float32)
    w = np.array([r[2] for r in rows], np.float32)
    assert filled((y, z, w)).result().auc == pytest.approx(auc_of_all_pairs(y, z, w), abs=1e-12)


@plainly
@given(both_classes, st.sampled_from([2, 16, 1 << 12]))
def test_histogram_auc_is_within_its_own_bound_of_the_truth(rows: list[tuple[bool, float, float]], bins: int) -> None:
    y, z = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows], np.float32)
    w = np.array([r[2] for r in rows], np.float32)
    r = filled((y, z, w), bins=bins, exact_samples=0).result()
    assert abs(r.auc - auc_of_all_pairs(y, z, w)) <= r.auc_error_bound + 1e-12


@plainly
@given(st.floats(width=32, min_value=-100, max_value=100), st.sampled_from([1 << 6, 1 << 19]))
def test_neighbouring_scores_never_swap_bins(score: float, bins: int) -> None:
    # The error bound holds only if bins are in the order of the scores.
    z = np.float32([score, np.nextafter(np.float32(score), np.float32(200))])
    r = filled((np.float32([0, 1]), z), bins=bins, exact_samples=0).result()
    assert r.auc + r.auc_error_bound == 1.0


def test_bound_is_below_1e_5_on_logits_of_standard_deviation_1() -> None:
    r = filled(clicks(200_000), exact_samples=0).result()
    assert 0 < r.auc_error_bound < 1e-5


@plainly
@given(st.integers(2, 3000), st.integers(0, 99), st.booleans())
def test_auc_and_log_loss_equal_scikit_learn(n: int, seed: int, weighted: bool) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    y, z = clicks(n, seed)
    y[:2] = 0, 1
    z = np.round(z, 1)  # ties
    w = np.random.default_rng(seed).random(n).astype(np.float32) if weighted else None
    r = filled((y, z) if w is None else (y, z, w)).result()
    assert r.auc == pytest.approx(sklearn.roc_auc_score(y, z, sample_weight=w), abs=1e-9)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    assert r.log_loss == pytest.approx(sklearn.log_loss(y, p, sample_weight=w), abs=1e-9)


def test_probabilities_and_logits_give_the_same_figures() -> None:
    y, z = clicks(5000)
    a = filled((y, z)).result()
    m = BinaryMetrics()
    m.update(y, probabilities=1 / (1 + np.exp(-z.astype(np.float64))))
    b = m.result()
    for name in ("auc", "log_loss", "normalized_entropy", "calibration", "ece"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-4)


def test_weight_2_counts_as_the_sample_twice() -> None:
    y, z = clicks(1000)
    w = np.where(np.arange(1000) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(1000), w.astype(int))
    a, b = filled((y, z, w)).result(), filled((y[twice], z[twice])).result()
    assert (a.samples, a.weight, b.weight) == (1000, len(twice), len(twice))
    for name in ("auc", "log_loss", "normalized_entropy", "calibration", "ece"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9)


def test_normalized_entropy_of_the_mean_label_is_1() -> None:
    # He et al. 2014, equation 3.
    y = np.float32([1] * 30 + [0] * 70)
    m = BinaryMetrics()
    m.update(y, probabilities=np.full(100, 0.3))
    r = m.result()
    assert r.normalized_entropy == pytest.approx(1.0)
    assert r.calibration == pytest.approx(1.0)
    assert r.auc == 0.5


def test_predicting_twice_the_rate_gives_calibration_2() -> None:
    y, z = clicks(200_000, std=0.3)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    honest, doubled = BinaryMetrics(), BinaryMetrics()
    honest.update(y, probabilities=p)
    doubled.update(y, probabilities=np.minimum(2 * p, 1))
    assert honest.result().calibration == pytest.approx(1, abs=0.02)
    assert doubled.result().calibration == pytest.approx(2 * honest.result().calibration, rel=1e-3)
    assert honest.result().ece < 0.01
    assert doubled.result().ece == pytest.approx(p.mean(), rel=0.05)


@plainly
@given(both_classes, st.integers(0, 40), st.sampled_from([0, 5, 1000]))
def test_merging_parts_equals_seeing_all_at_once(
    rows: list[tuple[bool, float, float]], cut: int, exact_samples: int
) -> None:
    y, z, w = (np.array([r[i] for r in rows], np.float32) for i in range(3))
    whole = filled((y, z, w), exact_samples=exact_samples)
    left = filled((y[:cut], z[:cut], w[:cut]), exact_samples=exact_samples)
    left.merge(filled((y[cut:], z[cut:], w[cut:]), exact_samples=exact_samples))
    a, b = whole.result(), left.result()
    for name in ("samples", "positives", "weight", "auc", "auc_error_bound", "log_loss", "calibration"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), nan_ok=True)
    assert (a.note, a.roc) == (b.note, b.roc)


def test_merging_unweighted_into_weighted_counts_ones() -> None:
    y, z = clicks(500)
    m = filled((y[:200], z[:200], np.ones(200)))
    m.merge(filled((y[200:], z[200:])))
    assert m.result().auc == pytest.approx(filled((y, z)).result().auc, abs=1e-12)


def test_merging_other_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="64 and 128"):
        BinaryMetrics(bins=64).merge(BinaryMetrics(bins=128))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_gives_nan_and_says_why(label: int) -> None:
    r = filled((np.full(7, label, np.float32), np.zeros(7, np.float32))).result()
    assert math.isnan(r.auc)
    assert math.isnan(r.normalized_entropy)
    assert r.log_loss == pytest.approx(math.log(2))
    assert r.note == f"AUC and normalized entropy are undefined: all 7 labels are {label}"
    assert r.roc == []


def test_a_class_whose_weights_are_all_0_gives_nan_and_says_so() -> None:
    r = filled((np.float32([0, 1]), np.float32([0, 1]), np.float32([1, 0]))).result()
    assert math.isnan(r.auc)
    assert r.note is not None
    assert "every label 1 has weight 0" in r.note


def test_nothing_seen_gives_nan_and_says_so() -> None:
    r = BinaryMetrics().result()
    assert math.isnan(r.log_loss)
    assert r.note == "nothing was measured: no samples"
    m = filled((np.float32([0, 1]), np.float32([0, 1]), np.float32([0, 0])))
    assert m.result().note == "nothing was measured: all weights are 0"


def test_more_samples_than_fit_fall_back_to_the_histogram_and_say_so() -> None:
    y, z = clicks(1000)
    m = filled((y[:500], z[:500]), exact_samples=600)
    assert m.result().auc_error_bound == 0
    m.update(y[500:], z[500:])
    r = m.result()
    assert 0 < r.auc_error_bound < 1e-3
    assert r.note is not None
    assert "more than 600 samples" in r.note
    assert abs(r.auc - filled((y, z)).result().auc) <= r.auc_error_bound


def test_logits_and_probabilities_mixed_fall_back_to_the_histogram() -> None:
    # Their order across kinds is lost in float32: 0.3 as a logit and as a probability are different predictions.
    y, z = clicks(1000)
    m = filled((y[:500], z[:500]))
    m.update(y[500:], probabilities=1 / (1 + np.exp(-z[500:])))
    r = m.result()
    assert r.note is not None
    assert "mixed" in r.note
    assert abs(r.auc - filled((y, z)).result().auc) <= r.auc_error_bound + 1e-6


def test_scores_are_copied() -> None:
    # The trainer writes the next batch's logits into the same memory.
    y, z = np.float32([0, 1]), np.float32([0, 1])
    m = filled((y, z))
    z[:] = [1, 0]
    y[:] = [1, 1]
    assert m.result().auc == 1


def test_extreme_scores_cost_a_finite_loss() -> None:
    m = BinaryMetrics()
    m.update([0, 1, 0, 1], probabilities=np.float32([1, 0, 0, 1]))
    assert m.result().log_loss == pytest.approx(-math.log(np.finfo(np.float32).eps) / 2)
    assert filled((np.float32([0, 1]), np.float32([1e4, -1e4]))).result().log_loss == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1], {"logits": [0.0, float("nan")]}, "1 of 2 scores are NaN"),
        ([0, 1], {"logits": [float("inf"), 1e300]}, "2 of 2 scores"),
        ([0, 1], {"probabilities": [0.0, 1.5]}, r"in \[0, 1\], got 0 to 1.5"),
        ([0, 2], {"logits": [0.0, 1.0]}, "labels must be 0 or 1, got 2"),
        ([0, float("nan")], {"logits": [0.0, 1.0]}, "labels must be 0 or 1, got nan"),
        ([0, 1], {"logits": [0.0, 1.0], "weights": [1, -1]}, "weights must be finite and not negative, got -1"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_nothing_taken_in(
    labels: list[float], options: dict[str, list[float]], message: str
) -> None:
    m = BinaryMetrics()
    with pytest.raises(TrainingError, match=message):
        m.update(labels, **options)
    assert m.samples == 0
    assert m.to_dict() == BinaryMetrics().to_dict()


def test_wrong_shapes_and_arguments_are_refused() -> None:
    m = BinaryMetrics()
    with pytest.raises(ValueError, match="differ"):
        m.update([0, 1], [0.0])
    with pytest.raises(ValueError, match="one BinaryMetrics for each label"):
        m.update(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="either logits or probabilities"):
        m.update([0, 1])


def test_columns_of_one_label_are_taken() -> None:
    m = BinaryMetrics()
    m.update(np.float32([[0], [1]]), np.float32([[0], [1]]))
    assert m.samples == 2


@pytest.mark.parametrize("exact_samples", [0, 10_000])
@pytest.mark.parametrize("weighted", [False, True])
def test_state_goes_through_json_and_on_to_the_same_bits(exact_samples: int, weighted: bool) -> None:
    y, z = clicks(3000)
    w = np.random.default_rng(1).random(3000).astype(np.float32) if weighted else None
    batches = [(y[i : i + 700], z[i : i + 700], *([] if w is None else [w[i : i + 700]])) for i in range(0, 3000, 700)]
    whole = filled(*batches, bins=1 << 12, exact_samples=exact_samples)
    half = filled(*batches[:2], bins=1 << 12, exact_samples=exact_samples)
    resumed = BinaryMetrics.from_dict(json.loads(json.dumps(half.to_dict())))
    for b in batches[2:]:
        resumed.update(b[0], b[1], weights=b[2] if weighted else None)
    assert resumed.result() == whole.result()


def test_state_that_is_damaged_or_too_large_is_refused() -> None:
    state = BinaryMetrics(bins=64, exact_samples=0).to_dict()
    with pytest.raises(ValueError, match="damaged"):
        BinaryMetrics.from_dict({**state, "histogram": state["histogram"][:-8]})
    with pytest.raises(ValueError, match="1024 bytes of float64 and an end wanted, 1025 found"):
        BinaryMetrics.from_dict({**state, "histogram": b64encode(zlib.compress(bytes(1 << 24))).decode()})
    with pytest.raises(ValueError, match="damaged: KeyError: 'loss'"):
        BinaryMetrics.from_dict({k: v for k, v in state.items() if k != "loss"})
    with pytest.raises(ValueError, match="bins must be 2 to 16,777,216"):
        BinaryMetrics.from_dict({**state, "bins": 1 << 50})
    with pytest.raises(ValueError, match="version 7"):
        BinaryMetrics.from_dict({**state, "version": 7})


def test_clear_forgets_everything() -> None:
    m = filled(clicks(100))
    m.clear()
    assert m.to_dict() == BinaryMetrics().to_dict()


def test_roc_points_rise_from_corner_to_corner_and_hold_the_area() -> None:
    r = filled(clicks(20_000)).result()
    x, y = np.array(r.roc).T
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    assert len(x) <= 202
    assert float(np.trapezoid(y, x)) == pytest.approx(r.auc, abs=1e-3)


def test_reliability_groups_share_the_weight_and_hold_every_sample() -> None:
    y, z = clicks(20_000)
    r = filled((y, z)).result()
    predicted, observed, weight = np.array(r.reliability).T
    assert len(weight) == 20
    assert weight.sum() == 20_000
    assert weight.max() < 1.1 * 1000
    assert (np.diff(predicted) > 0).all()
    assert (observed * weight).sum() == pytest.approx(y.sum())
    assert r.ece == pytest.approx(float(np.average(abs(predicted - observed), weights=weight)))


def test_one_score_for_all_is_one_reliability_group() -> None:
    # A bin is never divided: half a bin has no mean of its own.
    groups = reliability(np.array([0.0, 70.0]), np.array([0.0, 30.0]), np.array([0.1, 0.25]), 20)
    assert groups == [(0.25, 0.3, 100.0)]
    assert calibration_error(groups) == pytest.approx(0.05)


def test_score_columns_hold_every_sample_and_end_where_scores_do() -> None:
    # Click rates fill the first two of fifty columns over [0, 1].
    y, z = clicks(20_000)
    r = filled((y, z - 4)).result()
    edges, negative, positive = np.array(r.scores).T
    assert len(edges) == 50
    assert edges[-1] < 0.2
    assert (negative.sum(), positive.sum()) == (r.samples - r.positives, r.positives)


def test_binned_auc_of_one_class_is_nan() -> None:
    assert all(math.isnan(x) for x in binned_auc(np.zeros(3), np.ones(3)))
