"""How jobs, metrics, results and checkpoints look on a terminal, and the plain values of `--json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from satrap.schema import Categorical, Feature, Job, Numeric, Sequence

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as Grid

    from satrap.checkpoint import Kept, Summary
    from satrap.store import ColdCounts
    from satrap.train import Evaluation, Result

_BOUND = ("admitted", "evicted", "expired", "refused")
FEATURES_SHOWN = 40
"""Longer lists are cut here; the run folder's job.yaml has them all."""


def line(text: str) -> None:
    """A plain line on stdout."""
    typer.echo(text)


def as_json(value: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(_undefined_as_null(value), indent=2, allow_nan=False))


def _undefined_as_null(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _undefined_as_null(v) for k, v in value.items()}
    return value


def decimal(x: float, digits: int = 4) -> str:
    """A figure with a fixed number of digits; n/a where it is undefined.

    >>> decimal(0.91234567), decimal(float("nan"))
    ('0.9123', 'n/a')
    """
    return "n/a" if math.isnan(x) else f"{x:.{digits}f}"


def notes(title: str, lines: Iterable[str]) -> None:
    """What inference decided, one line each; those that deserve a look stand out."""
    typer.echo(title)
    for text in lines:
        warning = text.startswith("warning:")
        typer.echo(typer.style(f"  ! {text}", fg=typer.colors.YELLOW) if warning else f"  · {text}")
    typer.echo()


def count(n: float) -> str:
    """A whole number with thousands separated.

    >>> count(1234567.8)
    '1,234,568'
    """
    return f"{n:,.0f}"


def size(n_bytes: float) -> str:
    """Bytes in the unit a person would choose.

    >>> size(512), size(3 * 2**20)
    ('512 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def settings(spec: Any) -> str:
    """A spec by its kind and what differs from the defaults, as one would write it.

    >>> from satrap.schema import Adam, MLP
    >>> settings(Adam(lr=0.01)), settings(MLP())
    ('adam lr=0.01', 'mlp hidden=256-64')
    """
    tag = spec.__struct_config__.tag
    default = {f.name: f.default for f in _fields(spec)}
    always = {"lr", "hidden", "path"}
    parts = [tag]
    for name in spec.__struct_fields__:
        value = getattr(spec, name)
        if name in always or value != default[name]:
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{name}={text}")
    return " ".join(parts)


def _fields(spec: Any) -> Any:
    import msgspec

    return msgspec.structs.fields(spec)


def feature_kind(f: Feature, job: Job) -> str:
    """What becomes of a feature's column, in a few words."""
    if isinstance(f, Numeric):
        steps = [s for s in (f.transform, f.scale) if s != "none"]
        width = f" x {f.width}" if f.width > 1 else ""
        return f"number{width}" + (f", {' then '.join(steps)}" if steps else "")
    table = job.table_of(f)
    shared = f" of table {table}" if table != f.name else ""
    if isinstance(f, Sequence):
        return f"sequence of ids{shared}, the last {f.max_length}"
    assert isinstance(f, Categorical)
    bucketed = f"{len(f.buckets) + 1} buckets" if f.buckets is not None else "ids"
    return f"{bucketed}{shared}" + (f", {f.pooling.value} pooled" if f.pooling.value != "sum" else "")


def job(job: Job, *, features: bool = True) -> None:
    """The job in one screen: features with what becomes of them, then model and training."""
    if features:
        console().print(_features(job))
    console().print(_settings(job))


def _features(job: Job) -> Grid:
    dims = {t.name: t.dim for t in job.resolved_tables()}
    grid = _grid("feature", "column", "becomes", "dim")
    grid.columns[3].justify = "right"
    for f in job.features[:FEATURES_SHOWN]:
        dim = str(dims[job.table_of(f)]) if not isinstance(f, Numeric) else ""
        grid.add_row(f.name, f.column or f.name, feature_kind(f, job), dim)
    if len(job.features) > FEATURES_SHOWN:
        grid.add_row("…", "", f"{len(job.features) - FEATURES_SHOWN} more", "")
    return grid


def _settings(job: Job) -> Grid:
    d, t = job.data, job.train
    labels = ", ".join(x.column + (f" = {x.positive!r}" if x.positive is not None else "") for x in d.label)
    held_out = f"{d.valid:.0%} held out" if isinstance(d.valid, float) else _paths(d.valid)
    facts = _facts()
    facts.add_row("train", _paths(d.train))
    facts.add_row("valid", held_out)
    if d.test:
        facts.add_row("test", _paths(d.test))
    facts.add_row("label", labels)
    facts.add_row("model", f"{settings(job.model)}, {settings(t.optimizer)}")
    facts.add_row("tables", ", ".join(dict.fromkeys(settings(x.optimizer) for x in job.resolved_tables())) or "none")
    epochs = f"{t.epochs} epoch" + ("s" if t.epochs != 1 else "")
    facts.add_row("training", f"{epochs}, batch {count(t.batch_size)}, staleness {t.staleness}, seed {job.seed}")
    return facts


def _paths(paths: Iterable[str]) -> str:
    shown = list(paths)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def console() -> Console:
    """Standard output, without markup or highlighting."""
    from rich.console import Console

    # No markup: names of columns and files may hold square brackets.
    return Console(highlight=False, markup=False)


def _grid(*columns: str) -> Grid:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in columns:
        grid.add_column(name, overflow="fold")
    return grid


def _facts(title: str | None = None) -> Grid:
    """Two columns, name and value, in a box where there is a title."""
    from rich import box
    from rich.table import Table

    facts = Table(
        box=box.ROUNDED if title else None, show_header=False, title=title, title_justify="left", title_style="bold"
    )
    facts.add_column(style="cyan", no_wrap=True)
    facts.add_column(overflow="fold")
    return facts


def result(result: Result) -> None:
    """The table a training run ends in."""
    facts = _facts(f"{result.run_dir.name}: {_ENDINGS[result.stopped]}")
    for name, e in (("test", result.test), ("valid", result.valid)):
        if e is not None:
            facts.add_row(f"{name} AUC", f"{_auc(e.auc, e.auc_error_bound)} on {count(e.samples)} samples")
            facts.add_row(f"{name} log loss", decimal(e.log_loss))
    # A resumed run that was done already has made no step to time.
    if result.samples_per_s:
        facts.add_row("samples/s", count(result.samples_per_s))
    passes = f"{result.epochs} epoch" + ("s" if result.epochs != 1 else "")
    facts.add_row("trained", f"{count(result.samples)} samples, {count(result.steps)} steps, {passes}")
    facts.add_row("rows", count(result.rows))
    size_ = result.size
    if size_.rows:
        parts = (size_.value_bytes, size_.state_bytes, size_.overhead_bytes)
        values, state, beside = (f"{n / size_.rows:.1f}" for n in parts)
        facts.add_row(
            "bytes a row", f"{size_.bytes_per_row:.1f}: values {values}, optimizer {state}, id and index {beside}"
        )
    for name, t in result.tables.items():
        if t.admitted or t.refused:
            facts.add_row(f"bound of {name}", bound_counts({k: getattr(t, k) for k in _BOUND}))
        if t.cold is not None:
            facts.add_row(f"disk of {name}", cold_counts(t.cold))
    if not math.isnan(result.staleness_mean):
        facts.add_row("staleness", f"{result.staleness_mean:.2f} updates on average, {result.staleness_max} at most")
    if result.gradients.get("went_back"):
        facts.add_row("gradients", f"{count(result.gradients['went_back'])} went back to a checkpoint with a restart")
    facts.add_row("run", path(result.run_dir))
    facts.add_row("checkpoint", path(result.checkpoint) if result.checkpoint else "none")
    if result.saves_failed:
        facts.add_row("saves failed", f"{count(result.saves_failed)}; see checkpoint_failed in metrics.jsonl")
    if result.plots:
        facts.add_row("plots", path(result.plots[0].parent))
    typer.echo()
    console().print(facts)


def profile(result: Result) -> None:
    """Where the time went, and where the files are that say so."""
    from satrap.observe.profile import PROFILE_FILE, TRACE_FILE, profile_table

    console().print(profile_table(result.profile))
    files = [result.run_dir / name for name in (PROFILE_FILE, TRACE_FILE)]
    line(f"In {' and '.join(path(f) for f in files if f.is_file())}; the trace opens in ui.perfetto.dev")


_ENDINGS = {"done": "trained", "early_stopping": "stopped early, at its best", "interrupted": "interrupted"}


def _auc(auc: float, error_bound: float) -> str:
    return decimal(auc) + (f" ± {error_bound:.1g}" if error_bound > 0 else "")


def drawn(what: RenderableType) -> None:
    """Anything that rich can draw."""
    console().print(what)


def path(where: Path) -> str:
    """A path relative to where the user is, where it is below that."""
    if "://" in str(where):
        return str(where)
    try:
        return str(where.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(where)


def evaluation(e: Evaluation, title: str) -> None:
    """Metrics of a saved model; by label where there are several."""
    facts = _facts(title)
    for label, m in e.by_label.items():
        lead = f"{label}: " if len(e.by_label) > 1 else ""
        facts.add_row(f"{lead}AUC", _auc(m.auc, m.auc_error_bound))
        facts.add_row(f"{lead}log loss", decimal(m.log_loss))
        facts.add_row(f"{lead}normalized entropy", decimal(m.normalized_entropy))
        facts.add_row(f"{lead}calibration", f"{decimal(m.calibration, 3)} (mean prediction over mean label)")
        facts.add_row(f"{lead}calibration error", decimal(m.ece))
        facts.add_row(f"{lead}samples", f"{count(m.samples)}, {count(m.positives)} positive")
    if e.note:
        facts.add_row("note", e.note)
    console().print(facts)


def summary_fields(s: Summary) -> dict[str, Any]:
    """A checkpoint's summary as plain values."""
    import msgspec

    return {
        "checkpoint": str(s.path),
        "satrap": s.satrap,
        "created": s.created,
        "step": s.step,
        "position": msgspec.to_builtins(s.position),
        "tables": [
            {
                "name": t.spec.name,
                "dim": t.spec.dim,
                "format": t.spec.format.value,
                "optimizer": msgspec.to_builtins(t.spec.optimizer),
                "rows": t.rows,
                "bytes": t.bytes,
                **({} if t.bound is None else {"bound": msgspec.to_builtins(t.bound)}),
            }
            for t in s.tables
        ],
        "rows": s.rows,
        "partitions": s.partitions,
        "dense": {"tensors": s.dense_tensors, "values": s.dense_values, "optimizer_values": s.optimizer_values},
        "bytes": s.bytes_total,
        "ignored_files": list(s.ignored),
    }


def kept_fields(listed: list[Kept]) -> list[dict[str, Any]]:
    """A folder's checkpoints as plain values."""
    return [
        {
            "checkpoint": str(k.path),
            "step": k.step,
            "created": k.created,
            "rows": k.rows,
            "bytes": k.bytes,
            **{f"valid_{name}": value for name, value in k.valid.items()},
            "best": k.best,
            "newest": k.newest,
            "problem": k.problem,
        }
        for k in listed
    ]


def kept(listed: list[Kept]) -> None:
    """A folder's checkpoints, a line each."""
    grid = _grid("checkpoint", "saved, UTC", "rows", "size", "valid AUC", "log loss", "")
    for i in range(4):
        grid.columns[i].no_wrap = True
    for i in range(2, 6):
        grid.columns[i].justify = "right"
    for k in listed:
        figures = [decimal(k.valid[n]) if n in k.valid else "" for n in ("auc", "log_loss")]
        marks = " ".join(name for name, is_so in (("best", k.best), ("newest", k.newest)) if is_so)
        sizes = ("", "") if k.problem else (count(k.rows), size(k.bytes))
        saved = k.created[:16].replace("T", " ")
        grid.add_row(k.path.name, saved, *sizes, *figures, "cannot be read" if k.problem else marks)
    console().print(grid)
    for k in listed:
        if k.problem:
            line(k.problem)


def bound_counts(counts: Mapping[str, int]) -> str:
    """What a bounded table has done so far.

    >>> bound_counts({"admitted": 12345, "evicted": 345, "expired": 0, "refused": 7})
    '12,345 rows admitted, 345 evicted, 0 expired; 7 pulls refused'
    """
    made, gone, old = (count(counts[k]) for k in ("admitted", "evicted", "expired"))
    return f"{made} rows admitted, {gone} evicted, {old} expired; {count(counts['refused'])} pulls refused"


def cold_counts(c: ColdCounts) -> str:
    """What lies on disk of a table, and what went there and came back.

    >>> from satrap.store import ColdCounts
    >>> cold_counts(ColdCounts(rows=900, file_bytes=131072, written=1500, moved=300, returned=600))
    '900 rows, 128.0 KiB; 1,500 written, 600 came back, each written 1.20 times'
    """
    times = 1 + c.moved / c.written if c.written else 1.0
    went = f"{count(c.written)} written, {count(c.returned)} came back"
    return f"{count(c.rows)} rows, {size(c.file_bytes)}; {went}, each written {times:.2f} times"


def summary(s: Summary) -> None:
    """A checkpoint at a glance: tables, then what else it holds."""
    import msgspec

    from satrap.observe.processes import plural

    optimizers = [settings(t.spec.optimizer) if t.spec.optimizer else "" for t in s.tables]
    one = len(set(optimizers)) == 1  # then it is no column of the table
    grid = _grid("table", "rows", "dim", "format", "bytes", "bytes a row", *([] if one else ["optimizer"]))
    for i in (1, 2, 4, 5):
        grid.columns[i].justify = "right"
    for t, o in zip(s.tables, optimizers, strict=True):
        each = f"{t.bytes / t.rows:.0f}" if t.rows else "n/a"
        figures = (count(t.rows), str(t.spec.dim), t.spec.format.value, size(t.bytes), each)
        grid.add_row(t.spec.name, *figures, *([] if one else [o]))
    facts = _facts(path(s.path))
    for t in s.tables:
        if t.bound is not None:
            facts.add_row(t.spec.name, bound_counts(msgspec.structs.asdict(t.bound)))
    facts.add_row("job", f"{s.job.name}, {settings(s.job.model)}")
    facts.add_row("step", count(s.step))
    p = s.position
    facts.add_row("goes on at", f"epoch {p.epoch}, window {p.window}, row {count(p.row)}")
    facts.add_row("rows", f"{count(s.rows)} in {plural(len(s.tables), 'table')}" + f", {optimizers[0]}" * one)
    facts.add_row(
        "dense", f"{count(s.dense_values)} numbers in {s.dense_tensors} tensors, {settings(s.job.train.optimizer)}"
    )
    facts.add_row("on disk", f"{size(s.bytes_total)}, rows in {s.row_files} files of {s.partitions} partitions")
    facts.add_row("written", f"{s.created} by satrap {s.satrap}")
    if s.ignored:
        facts.add_row("not read", ", ".join(s.ignored))
    console().print(grid)
    console().print(facts)
