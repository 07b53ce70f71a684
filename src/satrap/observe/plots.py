"""Pictures of a run, drawn from its log alone: loss, AUC, throughput, ROC, calibration.

Drawn with matplotlib's object interface: no window system, no state shared with the user's own figures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from satrap.errors import TrainingError
from satrap.observe.runlog import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[dict[str, Any]]
Floats = NDArray[np.float64]

PLOTS_FOLDER = "plots"
_INK, _SOFT, _GRID = "#22303c", "#7b8794", "#e4e8ec"
_BLUE, _ORANGE, _GREEN, _RED = "#2364aa", "#e07a1f", "#2a9d5c", "#c8373a"
_CYCLE = (_ORANGE, _GREEN, _RED, "#7b52ab", "#1b9aaa", "#8c6d46", "#d45087")  # blue is training's
_SPLIT_COLORS = {"train": _BLUE, "valid": _ORANGE, "test": _GREEN}
_RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "text.color": _INK,
}


def plots(run_dir: str | Path) -> list[Path]:
    """Draws what the log of a run has figures for, into `plots/` below the run folder. Returns the PNG files.

    A figure that is there already is replaced, whole. Raises TrainingError where the log cannot be read or the folder
    not be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    records = read_metrics(run_dir)
    folder = Path(run_dir) / PLOTS_FOLDER
    drawn = []
    with mpl.rc_context(_RC):
        for name, draw in _PLOTS.items():
            layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
            figure = Figure(figsize=(7.2, 4.5), dpi=144, layout=layout)
            if draw(figure, records):
                drawn.append(_save(figure, folder / f"{name}.png"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    aside = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(aside, format="png")
        os.replace(aside, path)
    except OSError as e:
        raise TrainingError(f"cannot write {path}: {e.strerror}; the run itself is not harmed") from e
    return path


def loss(figure: Figure, records: Records) -> bool:
    """Training loss, raw and smoothed, and the log loss of evaluations."""
    steps, values = _series(records, "loss", kind="train")
    evaluations = _by_split(records, "log_loss")
    if not len(steps) and not evaluations:
        return False
    ax = figure.add_subplot()
    if len(steps):
        ax.plot(steps, values, color=_BLUE, alpha=0.3, lw=1)
        ax.plot(steps, smooth(values), color=_BLUE, lw=2, label="train")
        # The first steps of a run tower over the rest, in which the reader is interested.
        _limit_above(ax, [values, *_values(evaluations)])
    _draw_evaluations(ax, evaluations, best=min)
    _finish(ax, "Loss", records, "step", "log loss")
    return True


def auc(figure: Figure, records: Records) -> bool:
    """AUC over training so far, and of evaluations."""
    steps, values = _series(records, "auc", kind="train")
    evaluations = _by_split(records, "auc")
    if not len(steps) and not evaluations:
        return False
    ax = figure.add_subplot()
    if len(steps):
        epochs = _series(records, "epoch", kind="train", where="auc")[1]
        starts = np.flatnonzero(np.diff(epochs)) + 1
        # It starts anew with each epoch, and so does its line, unless epochs are mere dashes of it.
        if len(epochs) < len(steps) or 10 * len(starts) > len(steps):
            starts = starts[:0]
        at, curve = np.insert(steps, starts, steps[starts]), np.insert(values, starts, np.nan)
        ax.plot(at, curve, color=_BLUE, lw=2, label="train, epoch so far")
        low, high = float(np.percentile(values, 5)), max(float(v.max()) for v in [values, *_values(evaluations)])
        settled = min([low, *(float(v.min()) for v in _values(evaluations))])
        if float(values.min()) < settled - (high - settled):
            ax.set_ylim(settled - 0.1 * (high - settled), high + 0.1 * (high - settled))
    _draw_evaluations(ax, evaluations, best=max)
    _finish(ax, "AUC", records, "step", "area under the ROC curve")
    return True


def throughput(figure: Figure, records: Records) -> bool:
    """Samples a second, measured staleness and memory, one above the other."""
    speed = _series(records, "samples_per_s", kind="train")
    if not len(speed[0]):
        return False
    staleness = _series(records, "staleness_mean", kind="train")
    memory = _series(records, "rss_bytes", kind="train")
    panels = 1 + bool(len(staleness[0])) + bool(len(memory[0]))
    figure.set_size_inches(7.2, 2.4 + 1.6 * panels)
    axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=[2] + [1] * (panels - 1))[:, 0])
    top = axes.pop(0)
    top.plot(speed[0], speed[1] / 1e3, color=_BLUE, lw=1.2)
    middle = float(np.median(speed[1])) / 1e3
    top.axhline(middle, color=_SOFT, lw=1, ls="--", label=f"median {middle:,.1f}")
    top.set_ylim(bottom=0)
    _finish(top, "Throughput", records, None, "thousand samples/s")
    if len(staleness[0]):
        ax = axes.pop(0)
        ax.plot(*staleness, color=_ORANGE, lw=1.2, label="mean")
        most = _series(records, "staleness_max", kind="train")
        if len(most[0]):
            ax.plot(*most, color=_ORANGE, lw=1, ls=":", label="most")
        ax.set_ylim(bottom=0)
        _finish(ax, "", records, None, "staleness, updates")
    if len(memory[0]):
        ax = axes.pop(0)
        ax.plot(memory[0], memory[1] / 2**30, color=_GREEN, lw=1.2)
        ax.set_ylim(0, 1.1 * float(memory[1].max()) / 2**30)
        _finish(ax, "", records, None, "memory, GiB")
    figure.axes[-1].set_xlabel("step")
    figure.align_ylabels()
    return True


def roc(figure: Figure, records: Records) -> bool:
    """ROC curves of the last evaluation of each split."""
    curves = [(n, r) for n, r in _last_evaluations(records) if r.get("roc")]
    if not curves:
        return False
    figure.set_size_inches(5.6, 5.6)
    ax = figure.add_subplot()
    ax.plot([0, 1], [0, 1], color=_SOFT, lw=1, ls="--")
    for (name, record), color in zip(curves, _colors(curves), strict=True):
        x, y = np.array(record["roc"], np.float64).T
        ax.plot(x, y, color=color, lw=2, label=f"{name}  AUC {record['auc']:.4f}")
        if len(curves) == 1:
            ax.fill_between(x, y, color=color, alpha=0.08, lw=0)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _finish(ax, "ROC", records, "false positive rate", "true positive rate", legend="lower right")
    return True


def calibration(figure: Figure, records: Records) -> bool:
    """Observed rate against prediction, with 95 % intervals, above a histogram of the predictions."""
    groups = [(n, r) for n, r in _last_evaluations(records) if r.get("reliability")]
    if not groups:
        return False
    figure.set_size_inches(5.6, 6.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    limit = 0.0
    for (name, record), color in zip(groups, _colors(groups), strict=True):
        predicted, observed, weight = np.array(record["reliability"], np.float64).T
        spread = 1.96 * np.sqrt(observed * (1 - observed) / np.maximum(weight, 1))
        ratio = record.get("calibration")
        text = name if ratio is None else f"{name}  predicted / observed {ratio:.3f}"
        upper.errorbar(
            predicted, observed, spread, color=color, lw=1.5, marker="o", ms=4, elinewidth=1, capsize=2, label=text
        )
        limit = max(limit, float(predicted.max()), float((observed + spread).max()))
    # Click rates are small: a square up to 1 would hold them all in a corner.
    limit = min(1.0, 1.05 * limit) or 1.0
    upper.plot([0, limit], [0, limit], color=_SOFT, lw=1, ls="--")
    upper.set(xlim=(0, limit), ylim=(0, limit))
    _finish(upper, "Calibration", records, None, "observed rate", legend="upper left")
    name, record = groups[-1]
    _histogram(lower, record)
    _finish(lower, "", records, "predicted probability", f"{name} samples", legend="best")
    return True


def _histogram(ax: Axes, record: dict[str, Any]) -> None:
    edges, negative, positive = np.array(record["scores"], np.float64).reshape(-1, 3).T
    width = edges[0]
    for count, color, label in ((negative, _SOFT, "label 0"), (positive, _RED, "label 1")):
        ax.bar(edges - width / 2, count, width * 0.9, color=color, alpha=0.6, label=label, lw=0)
    if max(negative.max(initial=0), positive.max(initial=0)) > 0:
        ax.set_yscale("log")  # the positives of rare clicks would not be seen beside the rest


_PLOTS: dict[str, Callable[[Figure, Records], bool]] = {
    "loss": loss,
    "auc": auc,
    "throughput": throughput,
    "roc": roc,
    "calibration": calibration,
}


def smooth(values: Floats) -> Floats:
    """A centred mean over about a twentieth of the values; the window shrinks evenly at both ends.

    >>> smooth(np.array([0.0, 3.0, 0.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    n = len(values)
    half = np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]), max(1, n // 40))
    total = np.append(0.0, np.cumsum(values))
    at = np.arange(n)
    return np.asarray((total[at + half + 1] - total[at - half]) / (2 * half + 1))


def _series(
    records: Records, field: str, *, kind: str, split: str | None = None, where: str | None = None
) -> tuple[Floats, Floats]:
    """Steps and values where the field, and the field `where`, have one."""
    fields = [field] if where is None else [field, where]
    rows = [r for r in records if r["kind"] == kind and all(r.get(f) is not None for f in fields)]
    rows = [r for r in rows if split is None or _name(r) == split]
    return np.array([r["step"] for r in rows], np.float64), np.array([r[field] for r in rows], np.float64)


def _name(record: dict[str, Any]) -> str:
    """Split and label of an evaluation."""
    return f"{record['split']} {record['label']}" if record.get("label") else str(record["split"])


def _by_split(records: Records, field: str) -> dict[str, tuple[Floats, Floats]]:
    names = dict.fromkeys(_name(r) for r in records if r["kind"] == "eval" and r.get(field) is not None)
    return {n: _series(records, field, kind="eval", split=n) for n in names}


def _values(evaluations: dict[str, tuple[Floats, Floats]]) -> list[Floats]:
    return [v for _, v in evaluations.values()]


def _last_evaluations(records: Records) -> list[tuple[str, dict[str, Any]]]:
    last = {_name(r): r for r in records if r["kind"] == "eval"}
    return list(last.items())


def _colors(items: Sequence[tuple[str, Any]]) -> list[str]:
    """By split where every split has one curve, otherwise one after the other."""
    if all(n in _SPLIT_COLORS for n, _ in items):
        return [_SPLIT_COLORS[n] for n, _ in items]
    return [_CYCLE[i % len(_CYCLE)] for i in range(len(items))]


def _draw_evaluations(
    ax: Axes, evaluations: dict[str, tuple[Floats, Floats]], best: Callable[[list[float]], float]
) -> None:
    items = list(evaluations.items())
    for (name, (steps, values)), color in zip(items, _colors(items), strict=True):
        top = best(values.tolist())
        text = f"{name}  {values[-1]:.4f}" + ("" if values[-1] == top else f", best {top:.4f}")
        ax.plot(steps, values, color=color, lw=1.5, marker="o", ms=5, label=text)


def _limit_above(ax: Axes, values: Sequence[Floats]) -> None:
    everything = np.concatenate(values)
    low, high = float(everything.min()), float(np.percentile(everything, 98))
    settled = max([high, *(float(v.max()) for v in values[1:])])
    if float(everything.max()) > settled + (settled - low):
        room = 0.1 * (settled - low)
        ax.set_ylim(low - room, settled + room)


def _finish(
    ax: Axes,
    title: str,
    records: Records,
    x: str | None,
    y: str,
    legend: Literal["best", "lower right", "upper left"] = "best",
) -> None:
    """Titles, labels, legend."""
    job = next((str(r["job"]) for r in records if r["kind"] == "start" and r.get("job")), "")
    if title:
        ax.set_title(f"{title}  ·  {job}" if job else title)
    if x is not None:
        ax.set_xlabel(x)
    ax.set_ylabel(y)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc=legend, fontsize=9)
