"""Small charts as SVG, in the colours of the page around them, so that they follow its light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satrap.observe.page import Markup, join, tag

Floats = NDArray[np.float64]
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40
POINTS_MAX = 400


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: x and y [n], and how it is drawn."""

    name: str
    x: Floats
    y: Floats
    color: int
    faint: bool = False
    """Thin and without a place in the legend."""
    dots: bool = False
    """A dot at every point, with its figures as a tooltip."""


def color(i: int) -> str:
    """The style sheet's colour i; they come round after eight."""
    return f"var(--c{i % 8})"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high.

    >>> ticks(0.0, 1.0), ticks(0.71, 0.79)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.72, 0.74, 0.76, 0.78])
    """
    if not high > low:
        return [low]
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(x: float) -> str:
    """A number for an axis.

    >>> short(1_200_000), short(25_000), short(0.75), short(0)
    ('1.2M', '25k', '0.75', '0')
    """
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= unit:
            return f"{x / unit:.4g}{letter}"
    return f"{x:.4g}"


def thinned(x: Floats, y: Floats, points_max: int = POINTS_MAX) -> tuple[Floats, Floats]:
    """At most so many points, each the mean of its neighbours; as it is where there are fewer."""
    if len(x) <= points_max:
        return x, y
    cuts = np.linspace(0, len(x), points_max + 1).astype(int)[:-1]
    n = np.diff(np.append(cuts, len(x)))
    return np.add.reduceat(x, cuts) / n, np.add.reduceat(y, cuts) / n


def line_chart(
    title: str, lines: Sequence[Line], *, x_label: str, y_low: float | None = None, y_high: float | None = None
) -> Markup | None:
    """A card with curves, or None where there is nothing to draw. `y_low`, `y_high`: limits where the figures' own are
    not the ones of interest; what is beyond is cut off."""
    drawn = [(x, *thinned(x.x[ok], x.y[ok])) for x in lines if (ok := np.isfinite(x.y) & np.isfinite(x.x)).any()]
    if not drawn:
        return None
    xs, ys = np.concatenate([d[1] for d in drawn]), np.concatenate([d[2] for d in drawn])
    low = float(ys.min()) if y_low is None else y_low
    high = float(ys.max()) if y_high is None else y_high
    if not high > low:
        low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
    space = 0.04 * (high - low)
    low, high = low - (space if y_low is None else 0.0), high + space
    x0, x1 = float(min(0.0, xs.min())), float(xs.max()) or 1.0
    frame = _Frame(x0, x1, low, high)
    marks = [frame.grid(x_label)]
    for line, x, y in drawn:
        marks.append(_curve(frame, line, x, y))
    return _card(title, marks, [(x.name, x.color) for x, _, _ in drawn if not x.faint])


@dataclass(frozen=True, slots=True)
class _Frame:
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, x: float) -> float:
        return LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, y: float) -> float:
        inside = min(max(y, self.y0), self.y1)
        return HEIGHT - BOTTOM - (inside - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str) -> Markup:
        parts = []
        for t in ticks(self.y0, self.y1):
            y = self.y(t)
            parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
            parts.append(tag("text", short(t), x=LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
        for t in ticks(self.x0, self.x1, 4):
            parts.append(tag("text", short(t), x=f"{self.x(t):.1f}", y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
        base = HEIGHT - BOTTOM
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        return join([*parts, tag("text", x_label, x=middle, y=HEIGHT - 4, text_anchor="middle")])


def _curve(frame: _Frame, line: Line, x: Floats, y: Floats) -> Markup:
    at = [(frame.x(a), frame.y(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    # What is beyond the limits is left out, not drawn along the edge.
    inside = ((y >= frame.y0) & (y <= frame.y1)).tolist()
    path = "".join(f"{'L' if i and inside[i - 1] else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(at) if inside[i])
    width, opacity = (1, 0.4) if line.faint else (2, 1)
    stroke = f"fill:none;stroke:{color(line.color)};stroke-width:{width};opacity:{opacity};stroke-linejoin:round"
    curve = tag("path", d=path, style=stroke)
    if not line.dots and len(at) > 1:
        return curve
    dots = (
        tag(
            "circle",
            tag("title", f"{line.name}: {b:.5g} at {short(a)}"),
            cx=f"{p:.1f}",
            cy=f"{q:.1f}",
            r=3,
            style=f"fill:{color(line.color)}",
        )
        for (p, q), a, b in zip(at, x.tolist(), y.tolist(), strict=True)
    )
    return join([curve, *dots])


def bar_chart(
    title: str, groups: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], *, x_label: str
) -> Markup | None:
    """A card with upright bars: of each (name, heights), side by side at every label. Heights are shares of 1."""
    most = max((max(heights, default=0.0) for _, heights in groups), default=0.0)
    if not most > 0:
        return None
    frame = _Frame(0.0, float(len(labels)), 0.0, most * 1.04)
    parts = []
    for t in ticks(0.0, frame.y1):
        y = frame.y(t)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        parts.append(tag("text", f"{t:.0%}", x=LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    width = 0.8 / len(groups)
    for g, (name, heights) in enumerate(groups):
        for i, h in enumerate(heights):
            a, b = frame.x(i + 0.1 + g * width), frame.x(i + 0.1 + (g + 1) * width)
            top = frame.y(h)
            tip = tag("title", f"{name}: {h:.2%} at {labels[i]}")
            parts.append(
                tag(
                    "rect",
                    tip,
                    x=f"{a:.1f}",
                    y=f"{top:.1f}",
                    width=f"{b - a:.1f}",
                    height=f"{HEIGHT - BOTTOM - top:.1f}",
                    style=f"fill:{color(g)}",
                )
            )
    every = -(-len(labels) // 12)
    for i, label in enumerate(labels):
        if i % every == 0:
            parts.append(tag("text", label, x=f"{frame.x(i + 0.5):.1f}", y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    parts.append(tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
    return _card(title, parts, [(name, i) for i, (name, _) in enumerate(groups)] if len(groups) > 1 else [])


def legend(names: Sequence[tuple[str, int]]) -> Markup:
    """Names beside their colours."""
    return tag("div", *(tag("span", key(c), name) for name, c in names), class_="legend")


def key(i: int) -> Markup:
    """A square of colour i."""
    return tag("span", class_="key", style=f"background:{color(i)}")


def _card(title: str, marks: Sequence[Markup], names: Sequence[tuple[str, int]]) -> Markup:
    picture = tag("svg", *marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return tag("div", tag("h3", title), picture, legend(names) if names else "", class_="card")
