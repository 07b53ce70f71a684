"""A running job at a glance: its last figures, and its servers and workers as they tell their metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satrap.errors import ServiceError, TrainingError
from satrap.observe.endpoint import Target, read_targets
from satrap.observe.processes import (
    EMBEDDING_WORKER_FIGURES,
    PROCESS_FIGURES,
    SERVER_FIGURES,
    WORKER_FIGURES,
    plural,
    table,
)
from satrap.observe.progress import duration, figure
from satrap.observe.runlog import read_metrics
from satrap.observe.scrape import Scrape, scrape

if TYPE_CHECKING:
    from rich.console import RenderableType

HEAD = ("step", "epoch", "samples", "samples_per_s", "loss", "auc", "staleness_mean", "rows")


@dataclass(slots=True)
class Top:
    """The processes of a run, asked again at every `look`. Used by one thread.

    Where a run is one process, or has ended, there is only what its log says.
    """

    run_dir: Path
    timeout_s: float = 2.0
    targets: Sequence[Target] = ()
    now: dict[str, Scrape] = field(default_factory=dict)
    """Name of a process → what it said; without those that do not answer."""
    before: dict[str, Scrape] = field(default_factory=dict)

    def look(self) -> None:
        """Asks every process, all at once. Raises TrainingError where the list of them is damaged."""
        self.targets = read_targets(self.run_dir)
        with ThreadPoolExecutor(max_workers=max(1, min(32, len(self.targets)))) as pool:
            said = list(pool.map(self._ask, self.targets))
        # A process in the place of another has figures of its own.
        self.before = self.now
        self.now = {self._key(t): s for t, s in zip(self.targets, said, strict=True) if s is not None}

    def _ask(self, target: Target) -> Scrape | None:
        try:
            return scrape(target.address, self.timeout_s)
        except ServiceError:
            return None

    @staticmethod
    def _key(target: Target) -> str:
        return f"{target.name} {target.host} {target.pid}"

    @property
    def running(self) -> bool:
        """Whether any process answers."""
        return bool(self.now)

    def figures(self) -> dict[str, dict[str, str]]:
        """Process → column → figure, as they are shown."""
        out = {}
        for t in self.targets:
            now, columns = self.now.get(self._key(t)), _COLUMNS[t.role]
            then = self.before.get(self._key(t))
            out[t.name] = {} if now is None else {title: f(now, then) for title, f in columns.items()}
        return out

    def draw(self) -> RenderableType:
        """For a console."""
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [Text(self.headline(), style="bold")]
        last = self.last_record()
        if last:
            shown = [(k.removesuffix("_mean"), figure(k, last[k])) for k in HEAD if last.get(k) is not None]
            parts.append(Text("  ".join(f"{k.replace('_per_s', '/s')} {v}" for k, v in shown)))
        for role, columns in _COLUMNS.items():
            rows = [
                (_label(t), self.now.get(self._key(t)), self.before.get(self._key(t)))
                for t in self.targets
                if t.role == role
            ]
            if rows:
                parts.append(table(f"{role}s", columns, rows))
        return Group(*parts)

    def headline(self) -> str:
        """The run, and how it is."""
        name = self.run_dir.resolve().name
        if not self.targets:
            last = self.last_record()
            ended = last.get("kind") == "end" if last else False
            ago = f", last heard of {duration(time.time() - last['time'])} ago" if last and not ended else ""
            return f"{name}: " + ("ended" if ended else f"no servers or workers{ago}")
        count = Counter(t.role for t in self.targets)
        silent = len(self.targets) - len(self.now)
        shown = [plural(count[role], role) for role in _COLUMNS if count[role] or role != "embedding worker"]
        text = f"{name}: {', '.join(shown)}"
        return text + (f"; {silent} of them {'does' if silent == 1 else 'do'} not answer from here" if silent else "")

    def last_record(self) -> dict[str, Any]:
        """The last figures in the log of the run; empty before the first."""
        try:
            records = read_metrics(self.run_dir)
        except TrainingError:
            return {}
        return next((r for r in reversed(records) if r.get("kind") in ("train", "end")), {})


def _label(target: Target) -> str:
    return f"{target.index}  {target.host}:{target.pid}"


_COLUMNS = {
    "server": {**SERVER_FIGURES, **PROCESS_FIGURES},
    "embedding worker": {**EMBEDDING_WORKER_FIGURES, **PROCESS_FIGURES},
    "worker": {**WORKER_FIGURES, **PROCESS_FIGURES},
}
