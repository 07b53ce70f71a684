"""The curves of `python -m benchmarks modes`, by matplotlib, without a window system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.modes_stats import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#22303c", "#2364aa", "#1b9aaa", "#2a9d5c", "#e07a1f", "#c8373a", "#7b52ab", "#8c6d46")


def _figure(panels: int) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(5.2 * panels, 4.0), dpi=110, layout=ConstrainedLayoutEngine())
    figure.subplots(1, panels, squeeze=False, sharey=True)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    limit: float | None,
    x: str,
    y: str,
    ticks: Sequence[str] = (),
) -> Path:
    """A panel for each title: a line for each name. `limit`: a dashed line at the best possible. `ticks`: what stands
    at 0, 1, … on the x axis."""
    figure = _figure(len(panels))
    for ax, (title, lines) in zip(figure.axes, panels.items(), strict=True):
        for (name, points), color in zip(lines.items(), COLORS * len(lines), strict=False):
            ax.plot([at for at, _ in points], [v for _, v in points], label=name, color=color, lw=1.5, marker=".")
        if limit is not None:
            ax.axhline(limit, color="#7b8794", ls="--", lw=1, label="Bayes")
        if ticks:
            ax.set_xticks(range(len(ticks)), list(ticks))
        ax.set(title=title, xlabel=x)
        ax.grid(color="#e4e8ec")
        ax.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel(y)
    return _save(figure, path)


def differences(path: Path, panels: Mapping[str, Mapping[str, Interval]], *, y: str) -> Path:
    """A panel for each title: mean and 95 % interval of each name's paired difference."""
    figure = _figure(len(panels))
    for ax, (title, bars) in zip(figure.axes, panels.items(), strict=True):
        at = range(len(bars))
        halves = [b.half or 0.0 for b in bars.values()]
        ax.errorbar(at, [b.mean for b in bars.values()], yerr=halves, fmt="o", color=COLORS[1], capsize=3)
        ax.axhline(0.0, color="#7b8794", lw=1)
        ax.set_xticks(list(at), list(bars), rotation=40, ha="right", fontsize=8)
        ax.set(title=title)
        ax.grid(color="#e4e8ec", axis="y")
    figure.axes[0].set_ylabel(y)
    return _save(figure, path)
