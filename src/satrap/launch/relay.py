"""The display of worker 0, kept for the driver to show."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from satrap.observe import Progress

SAYS_KEPT = 1000


class Relay:
    """Makes a display that shows nothing and keeps everything until it is taken. Thread-safe.

    >>> relay = Relay()
    >>> with relay.display(total_samples=100) as progress:
    ...     progress.update(step=1)
    ...     progress.say("hello")
    >>> relay.take()
    ({'total_samples': 100}, {'step': 1}, ('hello',))
    >>> relay.take()
    ({'total_samples': 100}, {'step': 1}, ())
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._options: dict[str, Any] | None = None
        self._figures: dict[str, Any] = {}
        self._says: list[str] = []

    def display(self, **options: Any) -> Progress:
        """To be given to a trainer as its `progress`."""
        with self._lock:
            self._options = {k: v for k, v in options.items() if k != "show"}
        return _Kept(self)

    def take(self) -> tuple[Mapping[str, Any] | None, Mapping[str, Any], tuple[str, ...]]:
        """(how the display was made, the last figures, lines since they were last taken)."""
        with self._lock:
            says, self._says = tuple(self._says), []
            return self._options, dict(self._figures), says

    def _update(self, figures: Mapping[str, Any]) -> None:
        with self._lock:
            self._figures.update(figures)

    def _say(self, text: str) -> None:
        # A signal handler may call it, but no signal comes to a thread that is not the main one.
        with self._lock:
            self._says.append(text)
            del self._says[:-SAYS_KEPT]


class _Kept(Progress):
    def __init__(self, relay: Relay) -> None:
        super().__init__(show=False)
        self._relay = relay

    def update(self, **figures: Any) -> None:
        self._relay._update(figures)

    def say(self, text: str) -> None:
        self._relay._say(text)
