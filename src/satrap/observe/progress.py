"""What a person sees while a model trains, and at the end.

On a terminal: a bar and a line of figures, redrawn in place. Elsewhere: one plain line every few seconds. All of it
goes to standard error, so that standard output stays for results.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

    from satrap.observe.metrics import Metrics

_REFRESH_HZ = 2  # a redraw holds the GIL for a few milliseconds

FIGURES = ("step", "samples_per_s", "rows_per_s", "loss", "auc", "staleness", "rows", "rss_bytes", "processes")
"""Fields of `Progress.update` that are shown, in this order; others are taken and not shown."""

_TITLES = {"samples_per_s": "samples/s", "rows_per_s": "rows/s", "auc": "AUC", "rss_bytes": "memory", "processes": ""}


class Progress:
    """Live display of one run: a context manager, quiet when told. Leaving it, by Ctrl-C too, restores the terminal.

    `update` costs microseconds: it keeps the figures, and a thread (terminal) or the next due line shows them.

    >>> import io
    >>> out = io.StringIO()
    >>> with Progress(total_samples=1000, file=out) as progress:
    ...     progress.update(step=1, epoch=0, samples=500, loss=0.69, auc=0.5)
    >>> print(out.getvalue().strip())
    50%  step 1  loss 0.6900  AUC 0.5000
    """

    def __init__(
        self,
        *,
        show: bool | None = None,
        total_samples: int | None = None,
        epochs: int = 1,
        interval_s: float = 5.0,
        file: TextIO | None = None,
        title: str = "training",
        unit: str = "samples",
        below: Callable[[], RenderableType | None] | None = None,
    ) -> None:
        """`show` None: live on a terminal, lines elsewhere; True: the same, whatever else is asked; False: nothing.

        `total_samples`: of all epochs together; None where it is not known. `interval_s`: least time between lines.
        `unit`: what `samples` are. `below`: drawn under the figures of a live display, whenever it is drawn.
        """
        self._file = file if file is not None else sys.stderr
        self._mode: Literal["live", "lines", "none"] = "none"
        if show is not False:
            live = self._file.isatty() and os.environ.get("TERM") != "dumb"
            self._mode = "live" if live else "lines"
        self._total, self._epochs = total_samples, epochs
        self._interval_s, self._title, self._unit = interval_s, title, unit
        self._below = below
        self._now: dict[str, Any] = {}
        self._shown = False  # whether a line showed what `_now` holds
        self._line_due = 0.0
        self._started = time.monotonic()
        self._first_samples: int | None = None
        self._doing: tuple[str, float] | None = None  # and since when
        self._live: Live | None = None
        self._out: Console | None = None

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._mode == "live":
            from rich.live import Live

            self._live = Live(
                get_renderable=self._draw,
                console=self._console(),
                refresh_per_second=_REFRESH_HZ,
                redirect_stdout=False,
                redirect_stderr=self._file is sys.stderr,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
        elif self._mode == "lines" and self._now and not self._shown:
            self._line(last=True)

    def update(self, **figures: Any) -> None:
        """The state now: `step`, `epoch` (from 0), `samples` (so far, all epochs), and any of `FIGURES`.

        What is not given keeps its last value.
        """
        if self._mode == "none":
            return
        self._now.update(figures)
        self._shown = False
        if self._first_samples is None and "samples" in self._now:
            # A resumed run starts in the middle: its speed is that of what it does itself.
            self._first_samples = int(self._now["samples"])
        if self._mode == "lines" and time.monotonic() >= self._line_due:
            self._line()

    def say(self, text: str) -> None:
        """One line of text above the bar, or between the lines; it stays."""
        if self._mode == "live":
            self._console().print(text, markup=False, highlight=False)
        elif self._mode == "lines":
            print(text, file=self._file, flush=True)

    def doing(self, what: str | None) -> None:
        """What training waits for now ("evaluating"), shown on a terminal with the seconds it has taken; None: nothing,
        it trains."""
        self._doing = None if what is None else (what, time.monotonic())

    def evaluation(self, split: str, metrics: Metrics, step: int) -> None:
        """The figures of an evaluation, as a line that stays."""
        parts = [f"{split} at step {step:,}:", f"AUC {metrics.auc:.4f}", f"log loss {metrics.log_loss:.4f}"]
        parts += [f"NE {metrics.normalized_entropy:.4f}", f"calibration {metrics.calibration:.3f}"]
        self.say("  ".join(parts) + f"  ({metrics.samples:,} samples)")

    def _console(self) -> Console:
        if self._out is None:
            from rich.console import Console

            self._out = Console(file=self._file)
        return self._out

    def _share(self) -> float | None:
        if not self._total or "samples" not in self._now:
            return None
        return min(1.0, float(self._now["samples"]) / self._total)

    def _seconds_left(self) -> float | None:
        speed = self._now.get("samples_per_s")
        if not speed and self._first_samples is not None:
            took = time.monotonic() - self._started
            speed = (self._now["samples"] - self._first_samples) / took if took > 0 else 0
        if not self._total or "samples" not in self._now or not speed or not math.isfinite(speed):
            return None
        return max(0.0, (self._total - int(self._now["samples"])) / float(speed))

    def _line(self, *, last: bool = False) -> None:
        self._line_due, self._shown = time.monotonic() + self._interval_s, True
        share = self._share()
        parts = [] if share is None else [f"{share:.0%}"]
        if self._epochs > 1 and "epoch" in self._now:
            parts.append(f"epoch {self._now['epoch'] + 1}/{self._epochs}")
        parts += [f"{_TITLES.get(k, k)} {figure(k, self._now[k])}".strip() for k in FIGURES if k in self._now]
        left = None if last else self._seconds_left()
        # In its first second a run has no speed to go by.
        if left is not None and share is not None and share < 1 and time.monotonic() - self._started > 1:
            parts.append(f"left {duration(left)}")
        print("  ".join(parts), file=self._file, flush=True)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        share, left, now = self._share(), self._seconds_left(), self._now
        head = Table.grid(padding=(0, 2), expand=False)
        total = None if share is None else 1.0
        bar = ProgressBar(total=total, completed=share or 0.0, width=36, complete_style="cyan", pulse=share is None)
        what = self._title
        if self._epochs > 1 and "epoch" in now:
            what += f"  epoch {now['epoch'] + 1}/{self._epochs}"
        done = f"{int(now.get('samples', 0)):,}" + (f" of {self._total:,}" if self._total else "") + f" {self._unit}"
        if (doing := self._doing) is not None:
            what += f"  {doing[0]} {duration(time.monotonic() - doing[1])}"
        times = f"{duration(time.monotonic() - self._started)} gone"
        if left is not None:
            times += f", {duration(left)} left"
        percent = "" if share is None else f"{share:.0%}"
        head.add_row(Text(what, style="bold"), bar, percent, done, Text(times, style="dim"))
        below = None if self._below is None else self._below()
        more = [] if below is None else [Padding(below, (1, 0, 0, 2))]
        # What the table below says at length is not said in a word above it.
        figures = [k for k in FIGURES if k in now and not (more and k == "processes")]
        if not figures:
            return Group(head, *more)
        body = Table.grid(padding=(0, 3))
        body.add_row(*(Text(_TITLES.get(k, k), style="dim") for k in figures))
        body.add_row(*(Text(figure(k, now[k]), style="cyan") for k in figures))
        return Group(head, Padding(body, (0, 0, 0, 2)), *more)


def figure(name: str, value: Any) -> str:
    """A figure as text, by what it is.

    >>> figure("samples_per_s", 123456.7), figure("rss_bytes", 3 << 29), figure("auc", float("nan"))
    ('123,457', '1.50 GiB', '-')
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if name.endswith("_bytes"):
        return size(value)
    if name in ("loss", "auc", "log_loss"):
        return f"{value:.4f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:,}"


def size(count_bytes: float) -> str:
    """Bytes in the unit that fits.

    >>> size(512), size(5 << 20)
    ('512 B', '5.00 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count_bytes < 1024:
            digits = 0 if unit == "B" or count_bytes >= 100 else 2
            return f"{count_bytes:.{digits}f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:.2f} TiB"


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes.

    >>> duration(75), duration(7500)
    ('1:15', '2h05')
    """
    s = round(seconds)
    return f"{s // 60}:{s % 60:02d}" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}"


def summary_table(rows: Mapping[str, object] | Sequence[tuple[str, object]], title: str | None = None) -> Table:
    """A table of two columns for the end of a run: what, and its figure. Print it with a `rich` console.

    >>> table = summary_table({"test AUC": "0.9021", "rows": 1200})
    >>> table.row_count
    2
    """
    from rich.box import ROUNDED
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=ROUNDED)
    table.add_column(style="dim", no_wrap=True)
    # Paths are the long values: folded, not cut, so that they can be copied.
    table.add_column(overflow="fold")
    for name, value in rows.items() if isinstance(rows, Mapping) else rows:
        table.add_row(name, Text(f"{value:,}" if isinstance(value, int) else str(value)))
    return table
