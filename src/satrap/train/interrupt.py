"""Ctrl-C and SIGTERM: the first asks training to stop well, the second stops it now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it is entered, the first SIGINT or SIGTERM sets `requested`; the next raises KeyboardInterrupt.

    Python delivers signals to the main thread only; entered in any other thread, it changes nothing and never fires.
    The handlers found on entry are put back on exit.
    """

    def __init__(self, notify: Callable[[str], None] | None = None) -> None:
        self.requested = False
        self.notify = notify
        """Told, in the signal handler, what the first signal does."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self.notify is not None:
            self.notify(f"{signal.Signals(number).name}: finishing the step, then saving; once more stops at once")
