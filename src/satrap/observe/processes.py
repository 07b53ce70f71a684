"""Servers and workers of a running job, as a person sees them: rates and latencies between two scrapes.

The names of metrics here are those that `satrap.ps.meters` and `satrap.launch.worker_metrics` give; a test holds them
to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from satrap.observe.progress import figure, size
from satrap.observe.scrape import Scrape

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

Figure = Callable[[Scrape, Scrape | None], str]

SERVER_FIGURES: Mapping[str, Figure] = {
    "rows": lambda now, _: count(now.total("satrap_rows")),
    "memory": lambda now, _: amount(now.total("satrap_table_bytes")),
    "pulls/s": lambda now, then: count(now.rate("satrap_request_seconds_count", then, kind="Pull")),
    "pull ms": lambda now, then: quantiles(now, then, "satrap_request_seconds", kind="Pull"),
    "pushes/s": lambda now, then: count(now.rate("satrap_request_seconds_count", then, kind="Push")),
    "push ms": lambda now, then: quantiles(now, then, "satrap_request_seconds", kind="Push"),
    "rows out/s": lambda now, then: count(now.rate("satrap_rows_pulled_total", then)),
    "gradients/s": lambda now, then: count(now.rate("satrap_gradients_applied_total", then)),
    "staleness": lambda now, then: mean(now, then, "satrap_staleness_updates"),
    "in/s": lambda now, then: amount(now.rate("satrap_received_bytes_total", then)),
    "out/s": lambda now, then: amount(now.rate("satrap_sent_bytes_total", then)),
    "held": lambda now, _: count(now.total("satrap_pushes_held")),
    "evicted/s": lambda now, then: count(now.rate("satrap_bound_rows_total", then, outcome="evicted")),
    "on disk": lambda now, _: count(now.total("satrap_cold_rows")),
    "from disk/s": lambda now, then: count(now.rate("satrap_cold_rows_total", then, event="returned")),
}
"""Column → figure of a server. Times are those of handling, the network left out: p50 and p99."""

EMBEDDING_WORKER_FIGURES: Mapping[str, Figure] = {
    "samples/s": lambda now, then: count(now.rate("satrap_samples_pooled_total", then)),
    "ids/s": lambda now, then: count(now.rate("satrap_ids_total", then)),
    "unique": lambda now, then: ratio(now.rate("satrap_rows_pulled_total", then), now.rate("satrap_ids_total", then)),
    "pull ms": lambda now, then: quantiles(now, then, "satrap_request_seconds", kind="Lookup"),
    "push ms": lambda now, then: quantiles(now, then, "satrap_request_seconds", kind="PushPooled"),
    "gradients/s": lambda now, then: count(now.rate("satrap_gradients_applied_total", then)),
    "staleness": lambda now, then: mean(now, then, "satrap_staleness_updates"),
    "kept": lambda now, _: count(now.total("satrap_batches_kept")),
    "in/s": lambda now, then: amount(now.rate("satrap_received_bytes_total", then)),
    "out/s": lambda now, then: amount(now.rate("satrap_sent_bytes_total", then)),
}
"""Column → figure of an embedding worker. Times are from when a request's turn came until it was answered, servers
included; `unique` is the share of ids that are pulled; `kept` are batches that wait for their gradients; bytes are
those to and from workers."""

WORKER_FIGURES: Mapping[str, Figure] = {
    "step": lambda now, _: count(now.total("satrap_worker_steps_total")),
    "steps/s": lambda now, then: count(now.rate("satrap_worker_steps_total", then)),
    "samples/s": lambda now, then: count(now.rate("satrap_worker_samples_total", then)),
    "pull ms": lambda now, then: quantiles(now, then, "satrap_worker_request_seconds", kind="Pull"),
    "push ms": lambda now, then: quantiles(now, then, "satrap_worker_request_seconds", kind="Push"),
    "waiting": lambda now, _: count(now.total("satrap_worker_requests_under_way")),
    "gradients sent": lambda now, _: count(now.total("satrap_worker_gradients_sent_total")),
    "applied": lambda now, _: count(now.total("satrap_worker_gradients_applied_total")),
    "refused": lambda now, _: count(now.total("satrap_worker_gradients_refused_total") or 0),
    "duplicate": lambda now, _: count(now.total("satrap_worker_gradients_duplicate_total")),
    "resent": lambda now, _: count(now.total("satrap_worker_resent_total")),
}
"""Column → figure of a worker. Times are from asking a server until its answer was taken."""

PROCESS_FIGURES: Mapping[str, Figure] = {
    "CPU": lambda now, then: share(now.rate("process_cpu_seconds_total", then)),
    "process": lambda now, _: amount(now.total("process_resident_memory_bytes")),
}
"""Of every process: cores it keeps busy, and its memory."""


def count(n: float | None) -> str:
    """A number of things, or of things a second.

    >>> count(1234567.0), count(2.5), count(None)
    ('1,234,567', '2.5', '-')
    """
    if n is None:
        return "-"
    return f"{n:,.0f}" if n >= 10 or n == int(n) else f"{n:.1f}"


def amount(n: float | None) -> str:
    """Bytes, or bytes a second."""
    return "-" if n is None else size(n)


def share(n: float | None) -> str:
    """Cores that are kept busy.

    >>> share(1.256)
    '126%'
    """
    return "-" if n is None else f"{n:.0%}"


def ratio(part: float | None, whole: float | None) -> str:
    """A share of something.

    >>> ratio(1.0, 4.0), ratio(1.0, 0.0)
    ('25%', '-')
    """
    return "-" if part is None or not whole else f"{part / whole:.0%}"


def quantiles(now: Scrape, then: Scrape | None, name: str, **labels: str) -> str:
    """Median and 99th percentile of a histogram of seconds, in milliseconds."""
    p50, p99 = (now.quantile(name, q, then, **labels) for q in (0.5, 0.99))
    return "-" if p50 is None or p99 is None else f"{1000 * p50:.1f} / {1000 * p99:.1f}"


def mean(now: Scrape, then: Scrape | None, name: str) -> str:
    """The mean of what a histogram has got since."""
    n, total = now.total(f"{name}_count"), now.total(f"{name}_sum")
    if n is None or total is None:
        return "-"
    n -= 0.0 if then is None else then.total(f"{name}_count") or 0.0
    total -= 0.0 if then is None else then.total(f"{name}_sum") or 0.0
    return figure(name, total / n) if n > 0 else "-"


def table(
    role: str, figures: Mapping[str, Figure], rows: Iterable[tuple[str, Scrape | None, Scrape | None]]
) -> RenderableType:
    """One row a process: (name, its scrape now, the one before). Without one now, it does not answer. On a console that
    is too narrow for all figures they follow in further tables, below the first."""
    cells = []
    for name, now, then in rows:
        if now is None:
            cells.append([name, "does not answer", *[""] * (len(figures) - 1)])
        else:
            cells.append([name, *(f(now, then) for f in figures.values())])
    return _Folded((role, *figures), cells)


@dataclass(frozen=True, slots=True)
class _Folded:
    """A table that is cut between columns where it is wider than its console. The first column leads each part."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [max(len(t), *(len(r[i]) for r in self.rows)) + 3 for i, t in enumerate(self.titles)]
        part: list[int] = []
        for i in range(1, len(self.titles)):
            if part and widths[0] + sum(widths[k] for k in part) + widths[i] > options.max_width:
                yield self._part(part)
                part = []
            part.append(i)
        yield self._part(part)

    def _part(self, columns: Sequence[int]) -> Table:
        from rich import box
        from rich.table import Table

        grid = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1))
        grid.add_column(self.titles[0], no_wrap=True)
        for i in columns:
            grid.add_column(self.titles[i], justify="right", no_wrap=True)
        for row in self.rows:
            silent = row[1] == "does not answer"
            grid.add_row(row[0], *(row[i] for i in columns), style="red" if silent else "")
        return grid


def brief(servers: Sequence[tuple[Scrape, Scrape | None]], workers: int, embedding_workers: int = 0) -> str:
    """Servers, embedding workers and workers in half a line.

    >>> before, now = Scrape.of("satrap_sent_bytes_total 0", at=0), Scrape.of("satrap_sent_bytes_total 3145728", at=1)
    >>> brief([(now, before)], workers=2)
    '1 server 3.00 MiB/s out, 2 workers'
    """
    rates = [now.rate("satrap_sent_bytes_total", then) for now, then in servers]
    known = [r for r in rates if r is not None]
    speed = f" {size(sum(known))}/s out" if known else ""
    pooling = f", {plural(embedding_workers, 'embedding worker')}" if embedding_workers else ""
    return f"{plural(len(servers), 'server')}{speed}{pooling}, {plural(workers, 'worker')}"


def plural(n: int, what: str) -> str:
    """`1 server`, `2 servers`."""
    return f"{n} {what}" + ("" if n == 1 else "s")
