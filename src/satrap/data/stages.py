"""Background threads in a row, each handing items to the next through a short queue.

Errors of a thread are raised where the items are consumed; closing the consumer stops every thread. There are no
time-outs: a queue ends because its producer said so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from time import perf_counter, thread_time
from typing import Any, Generic, TypeVar

from satrap.observe.stages import StageSeconds, name_thread

A = TypeVar("A")
B = TypeVar("B")


class Stopped(Exception):  # noqa: N818 - not an error: how a producer learns that nobody listens any more
    """Nobody will take another item."""


class Queue(Generic[A]):
    """A bounded queue with an end, for one producer and one consumer. Thread-safe."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[A] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self.waited_s = 0.0
        """Seconds the consumer has waited for an item."""

    def put(self, item: A) -> None:
        """Waits for room. Raises Stopped once the consumer has gone."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """No item will follow; an error is raised to the consumer after the items before it."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """The consumer takes no more; a waiting producer is woken."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[A]:
        """Items until the end. Raises the producer's error; ends at once when stopped."""
        while True:
            with self._changed:
                start = perf_counter()
                while not self._items and not self._ended and not self._stopped:
                    self._changed.wait()
                self.waited_s += perf_counter() - start
                if self._stopped:
                    return
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item  # or the generator would hold the last item while it waits for the next


def in_background(
    source: Callable[[], Iterable[A]],
    stage: Callable[[Iterator[A]], Iterable[B]],
    *,
    name: str,
    seconds: StageSeconds | None = None,
) -> Generator[B, None, None]:
    """Runs `source` in one thread and `stage` on its items in a second; yields what the stage yields. Their time is
    counted as `read` and `decode`.

    At most one item waits behind each thread, besides the one it works on. Threads start at the first `next` and have
    ended when the generator is closed or exhausted.
    """
    raw: Queue[A] = Queue(1)
    done: Queue[B] = Queue(1)
    seconds = seconds or StageSeconds()
    decode = (lambda: stage(iter(raw)), done, "decode", seconds, raw)
    threads = [
        threading.Thread(target=_feed, args=(source, raw, "read", seconds), name=f"{name}-read", daemon=True),
        threading.Thread(target=_feed, args=decode, name=f"{name}-decode", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield from done
    finally:
        done.stop()
        raw.stop()
        for thread in threads:
            thread.join()


_NONE: Any = object()


def _feed(
    produce: Callable[[], Iterable[A]],
    queue: Queue[A],
    stage: str,
    seconds: StageSeconds,
    before: Queue[Any] | None = None,
) -> None:
    """A thread: puts what is produced into a queue. `before`: the queue it takes from; waiting there is no work."""
    name_thread(f"satrap-{stage}")
    items: Iterable[A] = ()
    try:
        items = produce()
        each = iter(items)
        while True:
            waited, wall, cpu = 0.0 if before is None else before.waited_s, perf_counter(), thread_time()
            item = next(each, _NONE)
            took = perf_counter() - wall
            idle = 0.0 if before is None else before.waited_s - waited
            seconds.add(stage, took - idle, thread_time() - cpu)
            if seconds.trace is not None:
                seconds.trace.span(stage, wall + idle, took - idle)
            if item is _NONE:
                break
            start = perf_counter()
            queue.put(item)
            seconds.add("room_wait", perf_counter() - start)
            del item
        queue.end()
    except Stopped:
        pass
    except BaseException as error:
        queue.end(error)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
