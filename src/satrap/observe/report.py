"""`satrap report`: a run, or several compared, as one HTML file that needs nothing else.

Made from run folders alone: the log (`metrics.jsonl`) and the resolved job (`job.yaml`), whatever state the run is in.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satrap.errors import TrainingError
from satrap.observe.charts import Line, bar_chart, color, key, line_chart, short
from satrap.observe.page import Markup, bar, details, join, page, table, tag
from satrap.observe.plots import smooth
from satrap.observe.profile import bottleneck, pooler_line, rows_of
from satrap.observe.progress import duration, figure, size
from satrap.observe.rundata import RunData, read_runs
from satrap.observe.stages import STAGES

REPORT_FILE = "report.html"
NONE = "-"


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the page of a run, or of several compared, whole and at once. Returns the file.

    `out` None: report.html in the folder of a single run, in the current folder for several. Raises TrainingError
    where a folder is not that of a run, or the file cannot be written.
    """
    data = read_runs([Path(r) for r in runs])
    path = Path(out) if out is not None else (Path(runs[0]) if len(runs) == 1 else Path()) / REPORT_FILE
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(report(data), encoding="utf-8")
        aside.replace(path)
    except OSError as e:
        raise TrainingError(f"cannot write {path}: {e.strerror}; name a file you may write with --out") from e
    return path


def report(runs: Sequence[RunData]) -> str:
    """The page."""
    several = len(runs) > 1
    title = f"{len(runs)} runs compared" if several else runs[0].name
    parts: list[Markup | None] = [_head(runs, title)]
    if several:
        parts += [_compared(runs), _differences(runs)]
    else:
        parts += [_tiles(runs[0])]
    cards = [c for c in _curves(runs) if c is not None]
    parts.append(_section("Curves", tag("div", *cards, class_="cards")) if cards else None)
    for i, run in enumerate(runs):
        parts.append(_of_one(run, i if several else None))
    written = time.strftime("%Y-%m-%d %H:%M")
    parts.append(tag("footer", f"Written {written} by satrap report, from {', '.join(str(r.folder) for r in runs)}."))
    return page(title, *(p for p in parts if p is not None))


def _section(title: str, *children: object) -> Markup:
    return join([tag("h2", title), *children])


_ENDINGS = {"done": "trained to its end", "early_stopping": "stopped early, at its best", "interrupted": "interrupted"}


def _head(runs: Sequence[RunData], title: str) -> Markup:
    lines = []
    for i, run in enumerate(runs):
        start = run.start
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(start["time"])) if start.get("time") else "not begun"
        ending = _ENDINGS.get(str(run.end.get("stopped")), "has not ended")
        mark = key(i) if len(runs) > 1 else ""
        what = f"job {start.get('job', '?')}, begun {began}, {ending}"
        lines.append(tag("p", mark, f"{run.name}: " if len(runs) > 1 else "", what, class_="soft"))
    return join([tag("h1", title), *lines])


def _tiles(run: RunData) -> Markup:
    return tag(
        "div",
        *(tag("div", tag("b", v), tag("span", k), class_="tile") for k, v in _figures(run).items()),
        class_="tiles",
    )


def _figures(run: RunData) -> dict[str, str]:
    """What a run came to, for tiles and comparisons; what it does not know is left out."""
    end, last = run.end, run.last
    gradients = end.get("gradients") or {}
    found = {
        "test AUC": _number(run.final("test", "auc"), 4),
        "test log loss": _number(run.final("test", "log_loss"), 4),
        "valid AUC": _number(run.final("valid", "auc"), 4),
        "valid log loss": _number(run.final("valid", "log_loss"), 4),
        "samples/s": _number(end.get("samples_per_s") or last.get("samples_per_s"), 0),
        "samples": _number(end.get("samples") or last.get("samples"), 0),
        "steps": _number(end.get("step") or last.get("step"), 0),
        "wall time": duration(end["seconds"]) if end.get("seconds") is not None else None,
        "staleness, mean": _number(end.get("staleness_mean", last.get("staleness_mean")), 2),
        "rows": _number((end.get("size") or {}).get("rows") or last.get("rows"), 0),
        "bytes a row": _number((end.get("size") or {}).get("bytes_per_row"), 1),
        "gradients applied": _number(gradients.get("applied"), 0),
    }
    return {k: v for k, v in found.items() if v is not None}


def _number(x: Any, digits: int) -> str | None:
    return None if x is None or not math.isfinite(x) else f"{x:,.{digits}f}"


def _compared(runs: Sequence[RunData]) -> Markup:
    figures = [_figures(r) for r in runs]
    names = list(dict.fromkeys(k for f in figures for k in f))
    rows = [[n, *(f.get(n, NONE) for f in figures)] for n in names]
    return _section(
        "Figures", table(["", *(r.name for r in runs)], rows, numbers=range(1, 1 + len(runs)), style="narrow")
    )


def _differences(runs: Sequence[RunData]) -> Markup:
    paths = dict.fromkeys(p for r in runs for p in r.job)
    missing = object()
    rows = []
    for path in paths:
        values = [r.job.get(path, missing) for r in runs]
        # What another job does not have at all is told where it says something.
        if any(v != values[0] for v in values) and any(v is not missing and v is not None for v in values):
            rows.append([path, *(NONE if v is missing else _value(v) for v in values)])
    if not rows:
        return _section("Differences of the jobs", tag("p", "None: the resolved jobs are equal."))
    shown = table(["setting", *(r.name for r in runs)], rows, style="long")
    return _section("Differences of the jobs", shown if len(rows) <= 12 else details(f"{len(rows)} settings", shown))


def _value(x: Any) -> str:
    return ", ".join(map(str, x)) if isinstance(x, list) else str(x)


def _curves(runs: Sequence[RunData]) -> list[Markup | None]:
    several, x = len(runs) > 1, "samples"

    def named(run: RunData, what: str) -> str:
        return run.name if several else what

    loss: list[Line] = []
    auc: list[Line] = []
    speed: list[Line] = []
    stale: list[Line] = []
    memory: list[Line] = []
    for i, run in enumerate(runs):
        train, valid = (i, i) if several else (0, 1)
        at, y = run.curve("loss")
        loss.append(Line(named(run, "train"), at, y, train, faint=True))
        loss.append(Line(named(run, "train, smoothed"), at, smooth(y) if len(y) else y, train, faint=several))
        at, y = run.curve("auc")
        auc.append(Line(named(run, "train, epoch so far"), at, y, train, faint=True))
        for name, lines in (("log_loss", loss), ("auc", auc)):
            lines.append(Line(named(run, "valid"), *run.evaluations("valid", name), valid, dots=True))
            test = run.evaluations("test", name)
            lines.append(Line(named(run, "test"), *test, i if several else 2, faint=several, dots=True))
        speed.append(Line(named(run, "samples/s"), *run.curve("samples_per_s"), i))
        stale.append(Line(named(run, "mean"), *run.curve("staleness_mean"), i))
        at, y = run.curve("rss_bytes")
        memory.append(Line(named(run, "memory"), at, y / 2**30, i))
    return [
        line_chart("Log loss", loss, x_label=x, **_settled(loss, top=True)),
        line_chart("AUC", auc, x_label=x, **_settled(auc, top=False)),
        line_chart("Throughput, samples/s", speed, x_label=x, y_low=0.0),
        _staleness(runs),
        line_chart("Staleness so far, updates of a row between lookup and push", stale, x_label=x, y_low=0.0),
        line_chart("Memory, GiB", memory, x_label=x, y_low=0.0),
    ]


def _settled(lines: Sequence[Line], *, top: bool) -> dict[str, float]:
    """A limit that leaves out the first steps of a run, which tower over the rest."""
    known = [line.y[np.isfinite(line.y)] for line in lines]
    known = [y for y in known if len(y)]
    if not known or sum(map(len, known)) < 20:
        return {}
    every = np.concatenate(known)
    low, high = float(np.percentile(every, 4)), float(np.percentile(every, 96))
    room = max(high - low, 1e-6)
    if top and every.max() > high + room:
        return {"y_high": high + 0.3 * room}
    if not top and every.min() < low - room:
        return {"y_low": low - 0.3 * room}
    return {}


def _staleness(runs: Sequence[RunData]) -> Markup | None:
    """Gradients by updates between lookup and push, as shares."""
    known = [(r, [float(n) for n in r.end.get("staleness") or []]) for r in runs]
    longest = min(max((len(h) for _, h in known), default=0), 65)
    if not longest:
        return None
    groups = []
    for run, bins in known:
        total = sum(bins) or 1.0
        shares = [n / total for n in bins[:longest]] + [0.0] * (longest - len(bins))
        groups.append((run.name, shares))
    labels = [str(i) for i in range(longest)]
    return bar_chart("Gradients by staleness", groups, labels, x_label="updates of the row between lookup and push")


def _of_one(run: RunData, number: int | None) -> Markup:
    """What is of one run alone; below a heading where there are several."""
    parts: list[Markup | None] = []
    if number is not None:
        parts.append(tag("h2", key(number), run.name, style=f"border-top:2px solid {color(number)};padding-top:14px"))
    parts += [_time(run), _ledger(run), _tables(run), _hot_ids(run), _machine(run)]
    parts.append(details("Resolved job", tag("pre", run.job_text)))
    return join(p for p in parts if p is not None)


def _time(run: RunData) -> Markup | None:
    profile = run.profile
    if profile is None or not profile.workers or not profile.workers[0].training_s:
        return None
    w = profile.workers[0]
    said = tag("div", *(tag("p", s) for s in bottleneck(profile)), class_="say")
    rows, last = [], ""
    samples = profile.samples / max(1, len(profile.workers))
    for thread, stage, what, wall, cpu in rows_of(w):
        waits = stage.endswith(" wait")
        alone = short(float(f"{samples / wall:.3g}")) if stage in STAGES and wall > 0 else ""
        cells: list[object] = [
            thread if thread != last else "",
            stage,
            what,
            f"{wall:.2f}",
            bar(wall / w.training_s, wait=waits),
        ]
        cells += ["" if cpu is None else f"{cpu:.2f}", alone]
        if waits:
            cells[1:3] = [tag("td", stage, class_="wait"), tag("td", what, class_="wait what")]
        rows.append(cells)
        last = thread
    head = ["thread", "stage", "", "wall s", "of training", "CPU s", "samples/s alone"]
    notes = [
        f"{w.training_s:.1f} s of training; {w.overlap:.2f} stages at once; {w.cpu_s / w.training_s:.2f} of "
        f"{profile.cores} cores busy. Samples/s alone: what the stage would do if nothing else took time.",
        *(
            f"worker {o.rank}: dense {o.share('dense'):.0%}, reduce {o.share('reduce'):.0%}, waiting for rows "
            f"{o.share('lookup_wait', 'drain_wait'):.0%}, for workers {o.share('worker_wait'):.0%}"
            for o in profile.workers[1:]
        ),
        *(pooler_line(e, w.training_s) for e in profile.embedding_workers),
        *(f"{s.name}: " + ", ".join(f"{k} {v:.2f} s" for k, v in sorted(s.handled_s.items())) for s in profile.servers),
    ]
    title = "Where the time went" + (" (worker 0)" if len(profile.workers) > 1 else "")
    return _section(
        title, said, table(head, rows, numbers=(3, 5, 6), what=2), *(tag("p", n, class_="soft") for n in notes)
    )


def _ledger(run: RunData) -> Markup | None:
    g = run.end.get("gradients")
    if not g:
        return None
    refused = {k: v for k, v in g.items() if k.startswith("refused_")}
    came = g.get("applied", 0) + g.get("duplicates", 0) + sum(refused.values())
    rows = [
        ["sent", f"{g.get('sent', 0):,}"],
        ["applied", f"{g.get('applied', 0):,}"],
        ["duplicates", f"{g.get('duplicates', 0):,}"],
    ]
    rows += [[k.replace("_", ", ", 1).replace("_", " "), f"{v:,}"] for k, v in refused.items()]
    if g.get("went_back"):
        rows.append(["went back to a checkpoint", f"{g['went_back']:,}"])
    right = came == g.get("sent", 0)
    verdict = (
        "It balances: sent = applied + refused + duplicates."
        if right
        else f"It does not balance: {came:,} of {g.get('sent', 0):,} are accounted for."
    )
    return _section(
        "Ledger of gradients",
        table(["", "gradients"], rows, numbers=(1,), style="narrow"),
        tag("p", verdict, class_="good" if right else "bad"),
    )


_PARTS = ("value_bytes", "state_bytes", "overhead_bytes")


def _tables(run: RunData) -> Markup | None:
    tables: dict[str, dict[str, int]] = run.end.get("tables") or {}
    if not tables:
        return None
    of = {name: sum(t[p] for p in _PARTS) for name, t in tables.items()}
    most = max(of.values()) or 1
    rows = []
    for name in sorted(of, key=lambda n: -of[n]):
        t, n = tables[name], of[name]
        each = f"{n / t['rows']:.1f}" if t["rows"] else NONE
        rows.append([name, f"{t['rows']:,}", size(n), bar(n / most), each, *(size(t[p]) for p in _PARTS)])
    total = {k: sum(t[k] for t in tables.values()) for k in ("rows", *_PARTS)}
    whole = sum(of.values())
    each = f"{whole / total['rows']:.1f}" if total["rows"] else NONE
    rows.append([tag("b", "all"), f"{total['rows']:,}", size(whole), "", each, *(size(total[p]) for p in _PARTS)])
    head = ["table", "rows", "bytes", "", "a row", "values", "optimizer", "id and index"]
    return _section("Tables", table(head, rows, numbers=(1, 2, 4, 5, 6, 7)), _bounds(tables), _cold(tables))


_COLD = ("rows", "file_bytes", "index_bytes", "written", "moved", "returned")
_BOUND = ("admitted", "evicted", "expired", "refused")


def _bounds(tables: dict[str, dict[str, int]]) -> Markup | None:
    """What bounded tables have done; runs of before there were any say nothing of it."""
    rows = [[n, *(f"{t.get(k, 0):,}" for k in _BOUND)] for n, t in tables.items() if any(t.get(k) for k in _BOUND)]
    head = ["bounded table", "rows admitted", "evicted", "expired", "pulls refused"]
    return table(head, rows, numbers=(1, 2, 3, 4), style="narrow") if rows else None


def _cold(tables: dict[str, dict[str, Any]]) -> Markup | None:
    """What lies on disk of tables that are told to keep rows there, where the process that wrote the log held them."""
    cold = {n: t["cold"] for n, t in tables.items() if t.get("cold")}
    rows = [[n, *(size(c[k]) if k.endswith("bytes") else f"{c[k]:,}" for k in _COLD)] for n, c in cold.items()]
    head = ["table on disk", "rows there", "disk", "memory to find them", "rows written", "moved", "came back"]
    return table(head, rows, numbers=(1, 2, 3, 4, 5, 6), style="narrow") if rows else None


def _hot_ids(run: RunData) -> Markup | None:
    hot: dict[str, dict[str, Any]] = run.end.get("hot_ids") or {}
    known = {name: h for name, h in hot.items() if h.get("top")}
    if not known:
        return None
    cards = []
    for name, h in known.items():
        most = h["top"][0][1] or 1.0
        rows = [[i, f"{share:.2%}", bar(share / most)] for i, share in h["top"][:10]]
        error = f", each at most {h['error']:.2%} too low" if h["error"] >= 0.00005 else ""
        note = tag("p", f"{h['seen']:,} sightings{error}", class_="soft")
        cards.append(tag("div", tag("h3", name), table(["id", "share", ""], rows, numbers=(1,)), note, class_="card"))
    said = tag(
        "p",
        "The ids that come most often, by table: of every 128th batch of worker 0. Text is hashed before it is an id: "
        "satrap.hash_strings tells which text an id is.",
        class_="soft",
    )
    return _section("Hot ids", said, details(f"{len(known)} tables", tag("div", *cards, class_="cards")))


def _machine(run: RunData) -> Markup | None:
    machine = run.start.get("machine")
    if not machine:
        return None
    rows = []
    for k, v in machine.items():
        if k == "packages":
            rows.append([k, ", ".join(f"{p} {n}" for p, n in v.items())])
        elif k.endswith("_bytes"):
            rows.append([k.removesuffix("_bytes"), figure(k, v)])
        else:
            rows.append([k.replace("_", " "), _value(v)])
    return _section("Machine", table(["", ""], rows, style="long"))


__all__ = ["REPORT_FILE", "report", "write_report"]
