"""How jobs, metrics, results and checkpoints look on a terminal. Lines that scripts may read stay plain text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from satrap.schema import Categorical, Feature, Job, Numeric, Sequence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid

FEATURES_SHOWN = 40
"""Longer lists are cut here; the run folder's job.yaml has them all."""


def line(text: str) -> None:
    """A plain line on stdout."""
    typer.echo(text)


def as_json(value: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2))


def notes(lines: Iterable[str]) -> None:
    """What inference decided, one line each."""
    for text in lines:
        typer.echo(f"  · {text}")


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


def job(job: Job) -> None:
    """The job in one screen: features with what becomes of them, then model and training."""
    dims = {t.name: t.dim for t in job.resolved_tables()}
    grid = _grid("feature", "column", "becomes", "dim")
    grid.columns[3].justify = "right"
    for f in job.features[:FEATURES_SHOWN]:
        dim = str(dims[job.table_of(f)]) if not isinstance(f, Numeric) else ""
        grid.add_row(f.name, f.column or f.name, feature_kind(f, job), dim)
    if len(job.features) > FEATURES_SHOWN:
        grid.add_row("…", "", f"{len(job.features) - FEATURES_SHOWN} more", "")
    d, t = job.data, job.train
    labels = ", ".join(x.column + (f" = {x.positive!r}" if x.positive is not None else "") for x in d.label)
    held_out = f"{d.valid:.0%} held out" if isinstance(d.valid, float) else _paths(d.valid)
    console = _console()
    console.print(grid)
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
    console.print(facts)


def _paths(paths: Iterable[str]) -> str:
    shown = list(paths)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


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
