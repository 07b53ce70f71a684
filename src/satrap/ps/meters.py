"""What a server has done, in numbers, and as the text that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from satrap.ps.heat import CLASSES, Heat
from satrap.ps.protocol import STALENESS_BINS, Ack, TableStats

BOUNDS_S = tuple(1e-4 * 2**k for k in range(16))
"""Upper bounds of the buckets of handling times: 0.1 ms to 3.3 s."""
STALENESS_BOUNDS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 255)


@dataclass(slots=True)
class Times:
    """A histogram of seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Enters one duration."""
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


@dataclass(slots=True)
class Meters:
    """Counts of one server since it began. Written by its service thread; reading them elsewhere is safe."""

    handled: dict[str, Times] = field(default_factory=lambda: defaultdict(Times))
    """Kind of request → how long it took to answer, the network left out."""
    failures: Counter[str] = field(default_factory=Counter)
    """Why requests failed → how many."""
    bytes_in: int = 0
    bytes_out: int = 0
    rows_pulled: int = 0
    rows_made: int = 0
    """By pulls that found no row."""
    applied: int = 0
    """Gradients."""
    refused: Counter[str] = field(default_factory=Counter)
    """Gradients by reason."""
    duplicates: int = 0
    """Pushes that had been received before."""
    gaps: int = 0
    """Requests that came before a push that precedes them."""
    staleness: NDArray[np.int64] = field(default_factory=lambda: np.zeros(STALENESS_BINS, np.int64))
    """[257] gradients by row updates between pull and apply; the last: unknown."""
    heat: Heat = field(default_factory=Heat)

    def took(self, kind: str, seconds: float, size: int) -> None:
        """Enters a request of `size` bytes and how long it took."""
        self.handled[kind].add(seconds)
        self.bytes_in += size

    def acknowledged(self, ack: Ack) -> None:
        """Enters what became of one push."""
        self.applied += ack.applied
        self.duplicates += ack.duplicate
        for reason, n in ack.refused.items():
            self.refused[str(reason)] += n
        self.staleness += ack.staleness

    def text(self, stats: Mapping[str, TableStats], *, held: int, clients: int) -> str:
        """The text format of Prometheus."""
        return "\n".join(self._lines(stats, held, clients)) + "\n"

    def _lines(self, stats: Mapping[str, TableStats], held: int, clients: int) -> Iterator[str]:
        yield from _head("satrap_request_seconds", "histogram", "Time to answer a request, the network left out.")
        for kind, times in list(self.handled.items()):
            seen = 0
            for bound, n in zip((*map(repr, BOUNDS_S), "+Inf"), times.buckets, strict=True):
                seen += n
                yield f'satrap_request_seconds_bucket{{kind="{kind}",le="{bound}"}} {seen}'
            yield f'satrap_request_seconds_sum{{kind="{kind}"}} {times.total_s!r}'
            yield f'satrap_request_seconds_count{{kind="{kind}"}} {seen}'
        yield from _head("satrap_failures_total", "counter", "Requests that failed, by reason.")
        yield from (f'satrap_failures_total{{code="{c}"}} {n}' for c, n in list(self.failures.items()))
        for name, what, value in (
            ("satrap_received_bytes_total", "Bytes of requests.", self.bytes_in),
            ("satrap_sent_bytes_total", "Bytes of answers.", self.bytes_out),
            ("satrap_rows_pulled_total", "Rows sent to clients.", self.rows_pulled),
            ("satrap_rows_made_total", "Rows that a pull did not find and made.", self.rows_made),
            ("satrap_gradients_applied_total", "Gradients applied.", self.applied),
            ("satrap_duplicate_pushes_total", "Pushes that had been received before.", self.duplicates),
            ("satrap_gaps_total", "Requests that came before a push that precedes them.", self.gaps),
        ):
            yield from _head(name, "counter", what)
            yield f"{name} {value}"
        yield from _head("satrap_gradients_refused_total", "counter", "Gradients not applied, by reason.")
        yield from (f'satrap_gradients_refused_total{{reason="{r}"}} {n}' for r, n in list(self.refused.items()))
        yield from _head("satrap_staleness_updates", "histogram", "Updates of a row between its pull and its push.")
        yield from _staleness("satrap_staleness_updates", "", self.staleness[:-1])
        name = "satrap_staleness_by_heat_updates"
        yield from _head(name, "histogram", "The same of a sample, by how many updates the row had had before.")
        for heat, known in zip(CLASSES, self.heat.counts, strict=True):
            yield from _staleness(name, f'heat="{heat}"', known)
        for name, what, value in (
            ("satrap_pushes_held", "Pushes that wait for others of their step.", held),
            ("satrap_clients", "Clients that have introduced themselves.", clients),
        ):
            yield from _head(name, "gauge", what)
            yield f"{name} {value}"
        yield from _head("satrap_rows", "gauge", "Rows of a table.")
        yield from (f'satrap_rows{{table="{_escaped(t)}"}} {s.rows}' for t, s in stats.items())
        yield from _head("satrap_table_bytes", "gauge", "Bytes of a table: values, optimizer state, and all beside.")
        for t, s in stats.items():
            for part, n in (("values", s.value_bytes), ("state", s.state_bytes), ("overhead", s.overhead_bytes)):
                yield f'satrap_table_bytes{{table="{_escaped(t)}",part="{part}"}} {n}'
        what = "Rows of a bounded table made, evicted, expired, and pulls of ids that got none."
        yield from _head("satrap_bound_rows_total", "counter", what)
        for t, s in stats.items():
            counts = {"admitted": s.admitted, "evicted": s.evicted, "expired": s.expired, "refused": s.refused}
            if any(counts.values()):
                for outcome, n in counts.items():
                    yield f'satrap_bound_rows_total{{table="{_escaped(t)}",outcome="{outcome}"}} {n}'
        cold = {t: s.cold for t, s in stats.items() if s.cold is not None}
        if not cold:
            return
        yield from _head("satrap_cold_rows", "gauge", "Rows of a table that lie on disk.")
        yield from (f'satrap_cold_rows{{table="{_escaped(t)}"}} {c.rows}' for t, c in cold.items())
        yield from _head("satrap_cold_bytes", "gauge", "What they take of the disk, and of memory to be found.")
        for t, c in cold.items():
            for where, n in (("disk", c.file_bytes), ("index", c.index_bytes)):
                yield f'satrap_cold_bytes{{table="{_escaped(t)}",where="{where}"}} {n}'
        what = "Rows written to disk, moved there, come back for training, and read there by evaluation."
        yield from _head("satrap_cold_rows_total", "counter", what)
        for t, c in cold.items():
            for event in ("written", "moved", "returned", "looked_up"):
                yield f'satrap_cold_rows_total{{table="{_escaped(t)}",event="{event}"}} {getattr(c, event)}'


def _staleness(name: str, label: str, known: NDArray[np.int64]) -> Iterator[str]:
    """A histogram of updates [256]."""
    cumulated, lead, alone = np.cumsum(known), f"{label}," if label else "", f"{{{label}}}" if label else ""
    for b in STALENESS_BOUNDS:
        yield f'{name}_bucket{{{lead}le="{b}"}} {cumulated[b]}'
    yield f'{name}_bucket{{{lead}le="+Inf"}} {cumulated[-1]}'
    yield f"{name}_sum{alone} {int(known @ np.arange(known.size))}"
    yield f"{name}_count{alone} {cumulated[-1]}"


def _head(name: str, kind: str, what: str) -> tuple[str, str]:
    return f"# HELP {name} {what}", f"# TYPE {name} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
