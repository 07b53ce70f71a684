"""`python -m benchmarks figures`: the pictures of the performance page, drawn anew from stored benchmark output.

    python -m benchmarks train --only deep,sum > docs/figures/train.jsonl     # what it printed, as it is
    python -m benchmarks figures                                              # docs/figures/train.svg

A file holds the whole output of one run of one benchmark: its first line says which (`benchmark`) and on what machine
and commit. Several files of one benchmark may lie side by side under names of their own. Under each picture stand the
configuration, the machine, the commit, the date, and the hash of the lines it was drawn from; the tests hold each
picture to the hash of its file, so none is older than its figures.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import REPOSITORY, result_hash
from benchmarks.modes_stats import paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = REPOSITORY / "docs" / "figures"
OURS, OTHERS, LIMIT, SOFT = "#2364aa", "#9aa5af", "#d9691a", "#5f6b76"
WIDTH_INCHES, CURVES_INCHES = 7.6, 3.4
CAPTION_CHARACTERS, HALF_TITLE_CHARACTERS = 125, 30
"""As many as fit the width, and half of it."""
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "satrap", "font.size": 9}
"""Text stays text, and the same lines give the same file."""
MANY = 8
"""Of so many bars two panels stand side by side."""
COLORS = ("#22303c", "#2364aa", "#1b9aaa", "#2a9d5c", "#e07a1f", "#c8373a", "#7b52ab", "#8c6d46")
CLASSES = ("0-3", "4-15", "16-63", "64-255", "256+")
"""Of heat: `satrap.ps.heat`."""
PLAIN = "train.staleness_damping=false"
LESS_USUAL = ("plain", "asynchronous")
Lines = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure."""

    name: str
    value: float
    color: str = OURS
    half: float | None = None
    """Half of its 95 % interval."""
    limit: float | None = None
    """What it could be at most, where that was measured."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one kind, below each other."""

    title: str
    bars: Sequence[Bar]
    unit: str
    points: bool = False
    """Points on a line, not bars from 0: for differences."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines of one kind in one field."""

    title: str
    lines: dict[str, list[tuple[float, float]]]
    x: str
    y: str
    limit: float | None = None
    """A dashed line at the best possible."""
    ticks: Sequence[str] = ()
    """What stands at 0, 1, … on the x axis."""
    log: bool = False
    """Both axes."""
    log_x: bool = False
    """The x axis alone, and the y axis from 0."""
    dashed: Sequence[str] = ()
    """Lines with one of these words in their names."""


def main(argv: list[str]) -> int:
    """Draws a picture of every stored output; returns 1 where one cannot be drawn."""
    parser = argparse.ArgumentParser(prog="benchmarks figures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the stored outputs and the pictures")
    options = parser.parse_args(argv)
    status = 0
    for path in sorted(options.folder.glob("*.jsonl")):
        try:
            print(draw(path))
        except ValueError as e:
            print(f"{path}: {e}", file=sys.stderr)
            status = 1
    return status


def draw(path: Path) -> Path:
    """The picture of one stored output, beside it. Raises ValueError for what is none, naming what is missing."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        out = path.with_suffix(".svg")
        metadata = {"Date": None, "Creator": None}
        figure_of(path).savefig(out, format="svg", metadata=metadata, facecolor="#fdfdfc")
    text = "\n".join(x.rstrip() for x in out.read_text().splitlines()) + "\n"
    # What is drawn is cut off by shapes that are named by where they lay in memory.
    for i, name in enumerate(dict.fromkeys(re.findall(r'<clipPath id="(\w+)"', text))):
        text = text.replace(name, f"clip{i}")
    out.write_text(text)
    return out


def figure_of(path: Path) -> Figure:
    """What `draw` writes. Raises as it does."""
    import matplotlib as mpl

    lines = read(path)
    name = str(lines[0]["benchmark"])
    if name not in PANELS:
        raise ValueError(f"there is no picture of '{name}' yet; benchmarks.figures.PANELS has {', '.join(PANELS)}")
    panels = [p for p in PANELS[name](lines) if (p.bars if isinstance(p, Panel) else p.lines)]
    if not panels:
        raise ValueError(f"no line of it has figures of '{name}': was it stopped before its end?")
    with mpl.rc_context(STYLE):
        return _figure(panels, caption(path, lines))


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of an output. Raises ValueError where it does not begin with the line that says what it is."""
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as e:
            raise ValueError(
                f"line {number} is not JSON ({e}); keep what the benchmark printed to standard output"
            ) from e
    if not lines or "benchmark" not in lines[0] or "commit" not in lines[0].get("machine", {}):
        raise ValueError("its first line does not say benchmark and machine: it is not the whole output of a benchmark")
    return lines


def caption(path: Path, lines: Lines) -> str:
    """What the figures are of. Runs that were kept from before are named by their own commits."""
    first, machine = dict(lines[0]), dict(lines[0]["machine"])
    if "runs" in first:
        first["runs"] = sum("case" in x for x in lines)  # not those that are still to be made
    settings = [f"{k} {v}" for k, v in first.items() if isinstance(v, int | float | str) and k != "benchmark"]
    kept = sorted({str(x["commit"]) for x in lines if "case" in x and "commit" in x} - {machine["commit"]})
    runs = f"; runs of {', '.join(kept)}" if kept else ""
    cores = machine.get("cores")
    said = (
        f"benchmarks {first['benchmark']}: {', '.join(settings)}",
        f"{machine.get('cpu')}, {cores} core{'' if cores == 1 else 's'}, {machine.get('memory_gib')} GiB, "
        f"torch {machine.get('torch')}",
        f"commit {machine['commit']}{runs}, {machine.get('date', 'no date')}, lines {digest(path)}",
    )
    return "\n".join(textwrap.fill(x, CAPTION_CHARACTERS, break_on_hyphens=False) for x in said)


def digest(path: Path) -> str:
    """Of a stored output."""
    return result_hash([path.read_bytes()])


def _figure(panels: Sequence[Panel | Curves], text: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.transforms import blended_transform_factory

    rows = _rows(panels)
    heights = [max(_height(p, len(row)) for p in row) for row in rows]
    foot = 0.3 + 0.11 * len(text.splitlines())
    height = sum(heights) + foot
    layout = ConstrainedLayoutEngine(rect=(0, foot / height, 0.99, 1 - foot / height), wspace=0.08)
    figure = Figure(figsize=(WIDTH_INCHES, height), layout=layout)
    grid = figure.add_gridspec(len(rows), 2, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            ax = figure.add_subplot(grid[i, j] if len(row) > 1 else grid[i, :])
            title = panel.title if len(row) == 1 else textwrap.fill(panel.title, HALF_TITLE_CHARACTERS * (2 - j))
            drawn = ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
            if j == 0:  # from the picture's own edge, or a long one beside long names would be cut off
                drawn.set(x=0.01, transform=blended_transform_factory(figure.transFigure, drawn.get_transform()))
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_axisbelow(True)
            if isinstance(panel, Curves):
                _draw_curves(ax, panel)
            else:
                _draw_bars(ax, panel, room=0.14 * len(row))
                if len(row) > 1:
                    ax.locator_params(axis="x", nbins=4)
                    ax.tick_params(axis="y", left=j == 0, labelleft=j == 0)
    figure.text(0.01, 0.09 / height, text, fontsize=6.5, color=SOFT)
    return figure


def _rows(panels: Sequence[Panel | Curves]) -> list[list[Panel | Curves]]:
    """Two panels of the same many bars side by side, every other one in a row of its own."""
    rows: list[list[Panel | Curves]] = []
    for panel in panels:
        if rows and len(rows[-1]) == 1 and len(_names(panel)) >= MANY and _names(panel) == _names(rows[-1][0]):
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return rows


def _names(panel: Panel | Curves) -> list[str]:
    return [b.name for b in panel.bars] if isinstance(panel, Panel) else []


def _height(panel: Panel | Curves, beside: int) -> float:
    if isinstance(panel, Curves):
        return CURVES_INCHES
    return 0.9 + (0.3 if beside == 1 else 0.22) * len(panel.bars)


def _draw_bars(ax: Axes, panel: Panel, *, room: float) -> None:
    """`room`: for the numbers behind the bars, as a part of the longest."""
    at = range(len(panel.bars))
    values = [b.value for b in panel.bars]
    if panel.points and all(b.half is None for b in panel.bars):
        _draw_points(ax, panel.bars)
    elif panel.points:
        ax.axvline(0.0, color=SOFT, lw=1)
        ax.errorbar(values, at, xerr=[b.half or 0.0 for b in panel.bars], fmt="o", color=OURS, capsize=3)
    else:
        ax.barh(at, values, color=[b.color for b in panel.bars], height=0.65)
        for i, bar in enumerate(panel.bars):
            if bar.limit is not None:
                ax.plot([bar.limit] * 2, [i - 0.4, i + 0.4], color=LIMIT, lw=2)
            _number(ax, _short(bar.value), bar.value, i)
        end = max(max(values), *(b.limit or 0.0 for b in panel.bars), 1e-12)
        ax.set_xlim(0, (1 + room) * end)
        if end >= 1000:
            ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_yticks(list(at), [b.name for b in panel.bars])
    ax.set_ylim(len(panel.bars) - 0.4, -0.6)
    if panel.unit != panel.title:
        ax.set_xlabel(panel.unit, color=SOFT)
    ax.grid(axis="x", color="#e4e8ec")
    ax.spines["left"].set_visible(False)


def _draw_points(ax: Axes, bars: Sequence[Bar]) -> None:
    """One far from the others stands at the edge, as an arrow with its number: it would squeeze them into one spot."""
    values = [b.value for b in bars]
    middle = statistics.median(values)
    reach = 20 * statistics.median(abs(v - middle) for v in values) or float("inf")
    near = [v for v in values if abs(v - middle) <= reach]
    span = max(near) - min(near) or 1e-3
    left, right = min(near) - 0.3 * span, max(near) + 0.6 * span
    ax.set_xlim(left, right)
    ax.ticklabel_format(axis="x", useOffset=False)
    for i, bar in enumerate(bars):
        if left <= bar.value <= right:
            ax.scatter(bar.value, i, color=bar.color, s=30)
            _number(ax, f"{bar.value:.4f}", bar.value, i)
        else:
            low = bar.value < left
            edge = left if low else right
            ax.scatter(edge, i, color=bar.color, s=40, marker="<" if low else ">", clip_on=False)
            _number(ax, f"{bar.value:.4f}, off this axis", edge, i, before=not low)


def _number(ax: Axes, text: str, x: float, y: float, *, before: bool = False) -> None:
    """Beside what it is of, with room between."""
    shift, side = ((-6, 0), "right") if before else ((6, 0), "left")
    ax.annotate(text, (x, y), shift, textcoords="offset points", va="center", ha=side, color=SOFT, fontsize=8)


def _draw_curves(ax: Axes, panel: Curves) -> None:
    # From wide to narrow: what lies under another one still shows at its sides.
    for i, ((name, points), color) in enumerate(zip(panel.lines.items(), COLORS * len(panel.lines), strict=False)):
        width = 1.2 + 2.8 * (1 - (i + 1) / len(panel.lines))
        xs, ys = [x for x, _ in points], [y for _, y in points]
        style = "--" if any(word in name for word in panel.dashed) else "-"
        ax.plot(xs, ys, label=name, color=color, lw=width, ls=style, marker="o", ms=width + 2.2)
    if panel.limit is not None:
        ax.axhline(panel.limit, color=SOFT, ls="--", lw=1, label="the best possible")
    if panel.ticks:
        ax.set_xticks(range(len(panel.ticks)), list(panel.ticks))
    if panel.log:
        ax.set(xscale="log", yscale="log")
        ends = [f(x for points in panel.lines.values() for x, _ in points) for f in (min, max)]
        ax.plot(ends, ends, color=SOFT, ls="--", lw=1, label="in proportion")
    if panel.log_x:
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
    ax.set_xlabel(panel.x, color=SOFT)
    ax.set_ylabel(panel.y, color=SOFT)
    ax.grid(color="#e4e8ec")
    ax.legend(frameon=False, fontsize=8)


def _short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _train(lines: Lines) -> Iterable[Panel]:
    sides = [x for x in lines if "median_of" in x and "side" in x]
    for group in dict.fromkeys(x["group"] for x in sides):
        own = [x for x in sides if x["group"] == group]
        for key, unit in (("samples_per_s", "samples/s"), ("cpu_s_per_million", "CPU seconds per million samples")):
            bars = [Bar(x["side"], x[key], OURS if "satrap" in x["side"] else OTHERS) for x in own if key in x]
            yield Panel(f"{group}: {unit}", bars, unit)


def _servers(lines: Lines) -> Iterable[Panel]:
    ways = [x for x in lines if "median_of" in x and "way" in x]
    for group in dict.fromkeys(x["group"] for x in ways):
        for key, unit in (("samples_per_s", "samples/s"), ("cpu_s_per_million", "CPU seconds per million samples")):
            bars = [Bar(x["way"], x[key]) for x in ways if x["group"] == group and key in x]
            yield Panel(f"{group}: {unit}", bars, unit)


def _wire(lines: Lines) -> Iterable[Panel]:
    cases = [x for x in lines if "satrap_vs_echo" in x]
    for operation in dict.fromkeys(x["case"]["operation"] for x in cases):
        bars = []
        for x in cases:
            c = x["case"]
            if c["operation"] == operation:
                name = f"{c['rows']:,} rows, dim {c['dim']}, {c['wire']}"
                bars.append(Bar(name, x["satrap_vs_echo"], limit=x.get("bound_vs_echo")))
        yield Panel(f"{operation}: rate against an echo of the same bytes (line: bound)", bars, "of the echo's rate")


def _store(lines: Lines) -> Iterable[Panel]:
    cases = [x for x in lines if "case" in x and "lookup" in x]
    for key, of, title in (
        ("lookup", "satrap_vs_raw", "lookup against a raw gather"),
        ("update", "satrap_hinted_vs_raw", "update, as in training, against a raw read-modify-write"),
    ):
        bars = []
        for x in cases:
            c = x["case"]
            if of in x.get(key, {}):
                bars.append(Bar(f"dim {c['dim']}, {c['format']}, {c['threads']} threads", x[key][of]))
        yield Panel(title, bars, "of the raw rate")


def _pooling(lines: Lines) -> Iterable[Panel]:
    cases = [x for x in lines if "case" in x and "way" in x["case"]]
    for key, unit in (
        ("bytes_per_sample", "bytes per sample at the worker"),
        ("worker_cpu_s_per_million", "CPU seconds of the worker per million samples"),
    ):
        bars = []
        for x in cases:
            c = x["case"]
            color = OURS if c["way"] == "pooled" else OTHERS
            if key in x:
                bars.append(Bar(f"{c['values']} ids a feature, {c['wire']}, {c['way']}", x[key], color))
        yield Panel(unit, bars, unit)


def _peers(lines: Lines) -> Iterable[Panel]:
    sides = [x for x in lines if "median_of" in x and "side" in x]
    for key, unit in (
        ("samples_per_s", "samples/s"),
        ("cpu_s_per_million", "CPU seconds per million samples, all processes"),
        ("test_auc", "test AUC"),
        ("memory_mib", "MiB, all processes, the peers' rows in memory included"),
        ("first_batch_s", "seconds from the command to the first step"),
    ):
        bars = [
            Bar(f"{x['side']}, {x['precision']}", x[key], OURS if x["system"] == "satrap" else OTHERS)
            for x in sides
            if key in x
        ]
        yield Panel(unit, bars, unit, points=key == "test_auc")
    bars = [
        Bar(f"{x['side']}, {x['precision']}", x["lines"], OURS if x["system"] == "satrap" else OTHERS) for x in sides
    ]
    yield Panel("lines of user code", bars, "lines of user code")


def _capacity(lines: Lines) -> Iterable[Panel | Curves]:
    sizes = [x for x in lines if "lookup_vs_raw" in x and "filled" in x]
    if sizes:
        curves: dict[str, list[tuple[float, float]]] = {}
        for turn, raw in (("lookup", "a raw gather"), ("update", "a raw read and write")):
            for side, name in (("satrap", turn), ("raw", raw)):
                curves[name] = [(x["filled"], x[f"{turn}_mrows_per_s"][side]) for x in sizes]
        title = "lookups and updates of random rows, beside raw access by row number"
        yield Curves(title, curves, "rows of the table", "million rows/s", log_x=True, dashed=("raw",))
        bars = [Bar(f"{x['filled'] / 1e6:,.0f} million rows", x["fill_mrows_per_s"]) for x in sizes]
        yield Panel("filling", bars, "million rows/s")
    trained = [x for x in lines if isinstance(x.get("trained"), int)]
    medians = {
        n: statistics.median(x["samples_per_s"] for x in trained if x["trained"] == n)
        for n in sorted({x["trained"] for x in trained})
    }
    cold = {x["filled_cold"]: f", {x['memory']:.0%} of them in memory" for x in lines if "filled_cold" in x}
    bars = [Bar(f"{n / 1e6:,.0f} million rows{cold.get(n, '')}", v) for n, v in medians.items()]
    yield Panel("training on batches drawn by Zipf's law, median of the rounds", bars, "samples/s")


def _plan(lines: Lines) -> Iterable[Panel]:
    predicted = {x["servers"]: x["predicted"] for x in lines if "predicted" in x}
    found = {x["servers"]: x for x in lines if "median_of" in x}
    for key, unit in (
        ("samples_per_s", "samples/s"),
        ("worker_cpu_s_per_million", "CPU seconds per million samples, worker"),
        ("servers_cpu_s_per_million", "CPU seconds per million samples, servers"),
    ):
        bars = []
        for n, x in found.items():
            what = f"{n} server{'s' if n > 1 else ''}"
            bars += [Bar(f"{what}, measured", x[key]), Bar(f"{what}, predicted", predicted[n][key], OTHERS)]
        yield Panel(unit, bars, unit)


def _modes(lines: Lines) -> Iterable[Panel | Curves]:
    """AUC against samples; paired differences of the test AUC from synchronous training; staleness by heat; theory."""
    cases = [(dict(x["case"]), x) for x in lines if "case" in x and "test_auc" in x]
    sets = list(dict.fromkeys(_what(c) for c, _ in cases))
    for same in sets:
        own = [(c, x) for c, x in cases if _what(c) == same]
        title, best = f"{same}: AUC of samples not yet seen", lines[0].get("bayes_auc")
        yield Curves(title, _early(own), "million samples", "AUC", best, dashed=LESS_USUAL)
    for same in sets:
        yield _differences(same, [(c, x) for c, x in cases if _what(c) == same])
    hot: dict[str, dict[str, list[tuple[float, float]]]] = {}
    # Of more workers the curves lie on those of one.
    fewest = min((x["side"]["workers"] for x in lines if "side" in x), default=1)
    for x in lines:
        side = x.get("side", {"staleness": 0})
        if x.get("staleness_by_heat") and side["staleness"] and side["workers"] == fewest:
            c = dict(x["side"])
            points = [(float(CLASSES.index(k)), v) for k, v in x["staleness_by_heat"].items()]
            hot.setdefault(_what(c), {})[_side(c)] = points
    for same, curves in hot.items():
        title = f"{same}: staleness by how often a row was updated before"
        missed = "updates between pull and push"
        yield Curves(title, curves, "updates before", missed, ticks=CLASSES, dashed=LESS_USUAL)
    theory: dict[str, list[tuple[float, float]]] = {}
    for x in lines:
        if "theory" in x:
            alpha = x["theory"]["alpha"]
            theory.setdefault(f"frequency {alpha}", []).append((x["tau_alpha"], x["extra_regret"]))
    title = "regret above synchronous training"
    yield Curves(title, theory, "staleness times highest frequency", "regret", log=True)


def _what(c: dict[str, Any]) -> str:
    return f"{c['data']}" + (f", batch {c['batch']}" if c.get("batch") else "")


def _stored(c: dict[str, Any]) -> str:
    """How rows are kept, where that is not as fp32 without a bound: `Case.stored`."""
    text = " ".join(filter(None, (c.get("format", "fp32"), c.get("rounding"))))
    text += "" if c.get("state", "fp32") == "fp32" else f", moments {c['state']}"
    parts = [*([] if text == "fp32" else [text]), *([c["bounds"]] if c.get("bounds") else [])]
    return ", ".join(parts)


def _side(c: dict[str, Any]) -> str:
    if _stored(c) and not c["staleness"]:
        return _stored(c)
    mode = "asynchronous" if c["dense_mode"] == "async" else "hybrid" if c["staleness"] else "synchronous"
    said = f"{mode} {c['staleness']}" if c["staleness"] else mode
    said += "" if c["workers"] == 1 else f", {c['workers']} workers"
    said += "" if c.get("wire", "fp32") == "fp32" else f", {c['wire']} on the wire"
    return said + (", plain" if PLAIN in c.get("overrides", ()) else "")


def _early(own: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, list[tuple[float, float]]]:
    """Side → (million samples, mean AUC over its seeds)."""
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    for c, x in own:
        if x.get("progressive"):
            curves.setdefault(_side(c), []).append(x["progressive"])
    return {
        side: [(points[0][0] / 1e6, statistics.fmean(p[1] for p in points)) for points in zip(*runs, strict=False)]
        for side, runs in curves.items()
    }


def _differences(same: str, own: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Panel:
    sides: dict[tuple[int, str], dict[int, float]] = {}
    for c, x in own:
        sides.setdefault((c["workers"], _side(c)), {})[int(c["seed"])] = float(x["test_auc"])
    bars = []
    synchronous = {workers: auc for (workers, side), auc in sides.items() if side.startswith("synchronous")}
    for (workers, side), auc in sides.items():
        base = synchronous.get(workers) or next(iter(synchronous.values()), {})
        interval = None if side.startswith("synchronous") else paired(auc, base)
        if interval is not None:
            bars.append(Bar(f"{side} ({interval.n} seeds)", interval.mean, half=interval.half))
    base_is = "unbounded fp32 rows" if any(_stored(c) for c, _ in own) else "synchronous training"
    title = f"{same}: test AUC less that of {base_is}, 95 %"
    return Panel(title, bars, "difference", points=True)


PANELS: dict[str, Callable[[Lines], Iterable[Panel | Curves]]] = {
    "train": _train,
    "train on servers": _servers,
    "wire": _wire,
    "store": _store,
    "pooling": _pooling,
    "capacity": _capacity,
    "modes": _modes,
    "peers": _peers,
    "plan": _plan,
}
"""Benchmark, as its first line calls it → its panels. Whoever writes a benchmark adds its picture here."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
