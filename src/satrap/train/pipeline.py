"""The stages of training: batches are read, looked up, computed on, and their gradients pushed.

    reader threads ── Batch ──► engine thread: prepare → lookup ── Lookup ──► main thread: forward, backward, step
                                    ▲ one store                                   │
                                    └───────────── push ◄──── gradients ──────────┘

A *leg* is a run of steps between two drains. Its engine thread performs one fixed sequence of lookups and pushes, given
by `StalenessSchedule`, whatever the timing of the threads: with k = 2, from an empty pipeline,

    lookup 0, lookup 1, lookup 2, push 0, lookup 3, push 1, lookup 4, …, push the last three

so a run with staleness is as repeatable as one without. When a leg has ended, every push is applied and nothing is
looked up ahead: that is the drain before a checkpoint, before an evaluation, and at the end. Only reading and
preparation (what does not depend on the values of rows) run ahead of that.

An engine whose rows are behind a network offers the two halves of its calls (`submit_lookup`, `submit_push`). Then the
engine thread only begins them, in that same sequence, which the service keeps; a second thread ends them, in order. So
several are under way at once, and a network's delay is hidden as far as the staleness allows.

Threads wait in blocking queues; none spins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol

from satrap.data.batch import Batch
from satrap.errors import TrainingError
from satrap.observe.stages import StageSeconds, name_thread
from satrap.ps.protocol import Ack
from satrap.train.schedule import StalenessSchedule


class Engine(Protocol):
    """What a leg asks of an embedding engine. It may also offer `prepare(batch)`: see `Feed`; and, where its `overlaps`
    is true, `submit_lookup` and `submit_push`, which return what waits for the result."""

    def lookup(self, batch: Any, *, train: bool) -> Any:
        """The rows of a batch as tensors by feature."""

    def push(self, lookup: Any, *, seq: int, lr_factor: float, merge: int = 1) -> Ack:
        """Applies the gradients that backward left on a lookup, together with `merge - 1` other workers'."""


class Feed:
    """Batches in order, the next one read and prepared while the engine thread has nothing else to do.

    Preparation (`engine.prepare`, where there is one: finding the unique ids) does not read a row, so it may run ahead
    at any staleness, and across drains. Not thread-safe: one thread at a time.
    """

    def __init__(self, batches: Iterator[Batch], prepare: Callable[[Batch], Any] | None, seconds: StageSeconds) -> None:
        self._batches = batches
        self._prepare = prepare
        self._seconds = seconds
        self._ahead: list[Any] = []
        self._error: Exception | None = None
        self._exhausted = False

    def read_ahead(self) -> None:
        """Reads and prepares the next batch, unless that has been done or the data has ended.

        An error waits for `take`, so that what comes before the broken batch, a checkpoint say, is still done.
        """
        if self._ahead or self._exhausted or self._error is not None:
            return
        try:
            start = perf_counter()
            batch = next(self._batches, None)
            self._seconds.add("read_wait", perf_counter() - start)
            if batch is None:
                self._exhausted = True
                return
            with self._seconds.time("dedup"):
                self._ahead.append(batch if self._prepare is None else self._prepare(batch))
        except Exception as error:
            self._error = error

    def take(self) -> Any | None:
        """The next batch, prepared; None at the end of the data. Raises what reading it raised."""
        self.read_ahead()
        if self._error is not None:
            raise self._error
        return self._ahead.pop() if self._ahead else None

    def ended(self) -> bool:
        """Whether every batch has been taken. Reads ahead to know."""
        self.read_ahead()
        return self._exhausted and not self._ahead

    def close(self) -> None:
        """Stops the reader's threads."""
        self._ahead.clear()
        self._exhausted = True
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()


class _End:
    """Travels in place of a lookup or a gradient: nothing comes after it."""


_END = _End()
_PATIENCE_S = 5.0


class Leg:
    """A run of steps from an empty pipeline to an empty pipeline, iterated by the main thread.

        with Leg(...) as leg:
            for lookup in leg:
                ...                                # forward and backward
                leg.push(lookup, lr_factor=1.0)    # or leg.release(lookup), where nothing is to be pushed

    Leaving the block in the ordinary way, `break` included, applies every push handed over and drops lookups that were
    ahead. Leaving it by an exception applies no further push. An error of the engine thread is raised in the main one.

    In a group of `world` workers every worker runs the same steps, whether it has data for them or not: after its last
    batch it is handed None, until the main thread breaks. The workers' pushes of a step are merged to one optimizer
    step a row, so whoever has nothing to push pushes that; and every lookup waits for the merged pushes of the
    schedule, so it finds the same rows whatever the timing of the others.
    """

    def __init__(
        self,
        engine: Engine,
        feed: Feed,
        schedule: StalenessSchedule,
        *,
        first: int = 0,
        steps: int | None = None,
        train: bool = True,
        world: int = 1,
        seconds: StageSeconds,
        on_ack: Callable[[Ack], None] | None = None,
    ) -> None:
        """`first` is the number of the leg's first step; `steps` its length, None to the end of the data (of a group,
        where nobody else knows it: until the main thread breaks).

        `on_ack` is called in the main thread: before a lookup is handed out, with the acknowledgements that came before
        that lookup was made; at the end with the rest. So what it sees by a step does not depend on timing either.
        """
        self._engine, self._feed, self._schedule = engine, feed, schedule
        self._first, self._end, self._train = first, None if steps is None else first + steps, train
        self._seconds, self._on_ack, self._world = seconds, on_ack, world
        self._ready: SimpleQueue[Any] = SimpleQueue()
        self._gradients: SimpleQueue[Any] = SimpleQueue()
        self._acks: list[Ack] = []
        self._applied = first
        self._stopping = False
        self._aborted = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="satrap-engine", daemon=True)
        self._overlaps = bool(getattr(engine, "overlaps", False))
        self._under_way: SimpleQueue[Any] = SimpleQueue()

    def __enter__(self) -> Leg:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[Any]:
        while True:
            start = perf_counter()
            lookup, acks = self._ready.get()
            self._seconds.add("lookup_wait", perf_counter() - start)
            self._take(acks)
            if lookup is _END:
                if self._error is not None:
                    raise self._error
                return
            yield lookup

    def push(self, lookup: Any, *, lr_factor: float) -> None:
        """Hands a lookup with its gradients back, to be pushed in its turn."""
        self._gradients.put((lookup, lr_factor))

    def outstanding(self, step: int) -> int:
        """Pushes of earlier steps that the lookup of a step has not seen."""
        return step - self._schedule.applied_before(step, self._first)

    def release(self, lookup: Any) -> None:
        """Hands a lookup back that has nothing to push (evaluation)."""
        self._gradients.put((lookup, None))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._aborted = kind is not None
        self._gradients.put(_END)
        start = perf_counter()
        # After an error the reader may keep the thread for long; it ends by itself, without another push.
        self._thread.join(_PATIENCE_S if self._aborted else None)
        self._seconds.add("drain_wait", perf_counter() - start)
        while not self._ready.empty():
            self._take(self._ready.get()[1])
        if error is None and self._error is not None:
            raise self._error

    def _take(self, acks: list[Ack]) -> None:
        if self._on_ack is not None:
            for ack in acks:
                self._on_ack(ack)

    def _hand_out(self, lookup: Any) -> None:
        self._ready.put((lookup, self._acks))
        self._acks = []

    def _run(self) -> None:
        """The engine thread."""
        name_thread("satrap-engine")
        settling = threading.Thread(target=self._settle, name="satrap-settle", daemon=True)
        if self._overlaps:
            settling.start()
        try:
            self._alternate()
        except BaseException as error:
            self._error = self._error or error
        finally:
            if self._overlaps:
                self._under_way.put(_END)
                settling.join()
            self._hand_out(_END)

    def _settle(self) -> None:
        """The thread that ends what the engine thread has begun, in the same order. After an error it ends nothing
        more, and says so to who waits."""
        broken = False
        while (item := self._under_way.get()) is not _END:
            settle, ended = item
            try:
                if not broken:
                    settle()
            except BaseException as error:
                broken, self._error = True, error
                self._hand_out(_END)
                self._gradients.put(_END)  # the engine thread begins nothing more
            finally:
                ended.set()

    def _then(self, settle: Callable[[], None], *, wait: bool = False) -> None:
        """Does what follows once everything begun before has ended."""
        if not self._overlaps:
            settle()
            return
        ended = threading.Event()
        self._under_way.put((settle, ended))
        if wait:
            start = perf_counter()
            ended.wait()
            self._seconds.add("gradient_wait", perf_counter() - start)

    def _alternate(self) -> None:
        step = self._first
        while self._end is None or step < self._end:
            wanted = self._schedule.applied_before(step, self._first)
            if self._applied < wanted:
                self._feed.read_ahead()
            if not self._push_until(wanted) or self._stopping:
                break
            item = self._feed.take()
            if item is None and self._world == 1:
                break
            self._look_up(item)
            step += 1
        self._then(lambda: self._hand_out(_END))
        self._push_until(step)

    def _look_up(self, item: Any) -> None:
        if item is None:
            self._then(lambda: self._hand_out(None))
            return
        begin = self._engine.submit_lookup if self._overlaps else None  # type: ignore[attr-defined]
        finish = None if begin is None else begin(item, train=self._train)

        def settle() -> None:
            self._hand_out(self._engine.lookup(item, train=self._train) if finish is None else finish())

        self._then(settle)

    def _push_until(self, wanted: int) -> bool:
        """Applies pushes in order until those of the first `wanted` batches are applied. False: no more will come."""
        while self._applied < wanted:
            start = perf_counter()
            handed = self._gradients.get()
            self._seconds.add("gradient_wait", perf_counter() - start)
            if handed is _END or self._aborted:
                self._gradients.put(_END)
                return False
            lookup, lr_factor = handed
            if lr_factor is not None:
                self._push(lookup, lr_factor)
            self._applied += 1
        return True

    def _push(self, lookup: Any, lr_factor: float) -> None:
        seq = self._applied + 1
        options: dict[str, Any] = {"seq": seq, "lr_factor": lr_factor}
        if self._world > 1:
            options["merge"] = self._world
        if self._overlaps:
            finish = self._engine.submit_push(lookup, **options)  # type: ignore[attr-defined]
            # A merged push is applied when the last worker's is there: what is pulled next must not come before.
            self._then(lambda: self._acknowledged(seq, finish()), wait="merge" in options)
        else:
            self._acknowledged(seq, self._engine.push(lookup, **options))

    def _acknowledged(self, seq: int, ack: Ack) -> None:
        if ack.duplicate:
            raise TrainingError(
                f"the gradients of step {seq} were taken for those of a push applied before: these tables have been "
                "trained further than this run; start from fresh tables, or resume from their own checkpoint"
            )
        self._acks.append(ack)
