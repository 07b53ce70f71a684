"""What the driver shows: worker 0's progress, with servers and workers, and what happens to them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from satrap.errors import ServiceError
from satrap.launch.told import Told
from satrap.observe.processes import EMBEDDING_WORKER_FIGURES, SERVER_FIGURES, WORKER_FIGURES, brief, table
from satrap.observe.progress import Progress
from satrap.observe.scrape import Scrape

if TYPE_CHECKING:
    from rich.console import RenderableType

    from satrap.launch.fleet import Member

SERVER_COLUMNS = ("rows", "memory", "pull ms", "push ms", "rows out/s", "gradients/s", "staleness", "out/s")
EMBEDDING_WORKER_COLUMNS = ("samples/s", "ids/s", "unique", "pull ms", "push ms", "kept", "in/s", "out/s")
WORKER_COLUMNS = ("step", "pull ms", "push ms", "waiting", "gradients sent", "refused", "resent")
"""What fits beside a person's other windows; `satrap top` shows all."""


class Display:
    """On a terminal a bar, figures, and a table each of servers, embedding workers and workers; elsewhere lines. A
    context manager."""

    def __init__(self, show: bool | None) -> None:
        """`show` as `observe.Progress` has it: False is silent."""
        self._show = show
        self._progress: Progress | None = None
        self._now: dict[str, Scrape] = {}
        self._before: dict[str, Scrape] = {}
        self._members: Sequence[Member] = ()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, e, at)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._progress is not None:
            self._progress.say(text)
        elif self._show is not False:
            print(text, file=sys.stderr, flush=True)

    def update(self, members: Sequence[Member], told: Told | None) -> None:
        """Takes in what everyone told last, and worker 0 just now."""
        if self._show is False:
            return
        self._members = members
        for m in members:
            self._take(m)
        if told is None:
            return
        if self._progress is None and told.display is not None:
            self._progress = Progress(show=self._show, below=self._tables, **told.display)
            self._progress.__enter__()
        if self._progress is not None:
            if told.figures:
                servers = [
                    (self._now[m.name], self._before.get(m.name))
                    for m in members
                    if m.role == "server" and m.name in self._now
                ]
                workers, pooling = (sum(m.role == role for m in members) for role in ("worker", "embedding worker"))
                self._progress.update(**{**told.figures, "processes": brief(servers, workers, pooling)})
            for line in told.says:
                self._progress.say(line)

    def _take(self, member: Member) -> None:
        if not member.last:
            return
        try:
            now = Scrape.of(member.last, at=time.monotonic())
        except ServiceError:
            return
        member.last = ""
        if member.name in self._now:
            self._before[member.name] = self._now[member.name]
        self._now[member.name] = now

    def _tables(self) -> RenderableType | None:
        from rich.console import Group

        def of(role: str) -> list[tuple[str, Scrape | None, Scrape | None]]:
            return [
                (m.name, self._now[m.name], self._before.get(m.name))
                for m in self._members
                if m.role == role and m.name in self._now
            ]

        servers = table("", {k: SERVER_FIGURES[k] for k in SERVER_COLUMNS}, of("server"))
        workers = table("", {k: WORKER_FIGURES[k] for k in WORKER_COLUMNS}, of("worker"))
        pooling = of("embedding worker")
        if not pooling:
            return Group(servers, workers)
        columns = {k: EMBEDDING_WORKER_FIGURES[k] for k in EMBEDDING_WORKER_COLUMNS}
        return Group(servers, table("", columns, pooling), workers)
