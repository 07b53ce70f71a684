"""The reader: from files to batches, in a shuffled order that is the same whenever it is asked for again.

    files ─► pieces (read thread) ─► blocks ─► windows, shuffled (decode thread) ─► batches: views of windows (caller)

B batch, W rows of a window.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from satrap.data.batch import Batch, Position
from satrap.data.block import Block, Gatherer, cut, join, to_batch
from satrap.data.columns import needs_of
from satrap.data.deal import Shard, share
from satrap.data.decode import Decoder, require_measured
from satrap.data.files import AnyFormat, Paths
from satrap.data.fingerprint import compare, fingerprint
from satrap.data.opening import open_source
from satrap.data.order import HeldOut, Purpose, held_out, key, permutation
from satrap.data.source import READ_ROWS, Order, Piece
from satrap.data.stages import in_background
from satrap.errors import DataError, JobError
from satrap.observe.stages import StageSeconds
from satrap.schema import Job

Split = Literal["all", "train", "valid"]


@dataclass(frozen=True, slots=True)
class _Window:
    """The rows of one window that belong to the split, in the epoch's order."""

    number: int
    block: Block


class Reader:
    """Batches of a job's data.

    An epoch hands out every row of its split exactly once. Row groups are read in an order that follows from (seed,
    epoch), put together to windows of about `data.shuffle_rows` rows, and rows are permuted within their window by
    (seed, epoch, window); so any batch's position leads back to the very batches that followed it. Text files
    form windows in stream order. Memory: three to four windows and one row group.

    Several workers divide an epoch: row groups, in the epoch's order, are dealt to them round robin, and each forms its
    own windows and has its own positions. Every row is used once, by one of them. Row groups are cut where some would
    otherwise have more rows than others (see `deal`). Of text files, which are streams, every worker reads all and
    takes runs of 16,384 rows.

    Thread-safe: several epochs may be read at once, each with its own threads.
    """

    def __init__(
        self,
        job: Job,
        paths: Paths,
        *,
        seed: int,
        shuffle: bool,
        split: Split = "all",
        labels: bool = True,
        shard: tuple[int, int] = (0, 1),
        batch_size: int | None = None,
        format: AnyFormat | None = None,
        filesystem: Any = None,
    ) -> None:
        """Finds the files and checks their columns against the job.

        `split` picks rows by a hash of (seed, row number) where `data.valid` is a fraction. `labels=False` reads data
        that has none. `shard`: (rank, world), which of the workers this is and how many there are. `batch_size` None:
        this worker's share of `train.batch_size`; `format` None: `data.format`. `filesystem`: a pyarrow or fsspec file
        system that the paths are within.
        Raises DataError for files that cannot be read or do not fit; JobError for a split the job does not have, and
        for fewer samples a batch than workers.
        """
        self._job, self._seed, self._split, self._labels = job, seed, split, labels
        self._shuffle = shuffle and job.data.shuffle_rows > 0
        self._valid = _valid_fraction(job, split)
        self._shard = Shard(*shard)
        self._batch_sizes = _batch_sizes(job, batch_size, self._shard)
        self._batch_size = self._batch_sizes[self._shard.rank]
        window_rows = job.data.shuffle_rows if self._shuffle else READ_ROWS
        self._order = Order(seed, self._shuffle, window_rows, self._shard)
        needs = needs_of(job, labels=labels)
        self._source = open_source(paths, needs, self._order, format=format or job.data.format, filesystem=filesystem)
        require_measured(job)
        self._held: HeldOut | None = None

    @property
    def files(self) -> list[str]:
        """Names of the files, in order."""
        return [f.name for f in self._source.files]

    @property
    def rows(self) -> int | None:
        """Rows of the split that all workers together have in an epoch; None for text files that have not been read to
        their end yet."""
        total = self._source.rows
        return None if total is None else self._rows_in([(0, total)])

    def _rows_in(self, runs: list[tuple[int, int]]) -> int:
        """Rows of the split in some runs (first row, rows) of the dataset."""
        rows = sum(count for _, count in runs)
        if self._split == "all" or self._valid == 0.0:
            return rows
        total = self._source.rows
        assert total is not None
        if self._held is None or self._held.rows != total:
            self._held = HeldOut(self._seed, total, self._valid)
        held = sum(self._held.between(first, first + count) for first, count in runs)
        return held if self._split == "valid" else rows - held

    def steps(self, epoch: int) -> int | None:
        """Batches of an epoch, the last one perhaps short, of the worker that has most; None where the rows are not
        known. All workers find the same number."""
        dealt = self._source.dealt(epoch)
        if dealt is None:
            return None
        return max(-(-self._rows_in(d) // size) for d, size in zip(dealt, self._batch_sizes, strict=True))

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches of the first epoch: see `steps`. Where one worker has all rows, every epoch has as many."""
        return self.steps(0)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a position depends on, as plain JSON: files with sizes and rows, seed, split, windows and workers."""
        order = {
            "seed": self._seed,
            "split": self._split,
            "valid": self._valid,
            "shuffle": self._shuffle,
            "window_rows": self._order.window_rows,
            "world": self._shard.world,
        }
        return fingerprint(self._source, order)

    def check_fingerprint(self, saved: Mapping[str, Any], *, between_epochs: bool = False) -> None:
        """Raises DataError if a position saved beside this fingerprint does not fit the data as it is now.

        `between_epochs`: the position is the beginning of an epoch, which any number of workers can begin.
        """
        compare(saved, self.fingerprint, but=("world",) if between_epochs else ())

    def epoch(
        self, epoch: int = 0, start: Position | None = None, *, seconds: StageSeconds | None = None
    ) -> Generator[Batch, None, None]:
        """The batches of an epoch, or those from a position on. Closing the generator stops its threads.

        A batch's position is where the data goes on after it; after the last one that is the next epoch's beginning.
        `seconds`: where the time of reading and decoding is counted.
        Raises DataError for data that does not fit the job, for unreadable files, and for a position of other data.
        """
        start = start or Position(epoch)
        if start.epoch != epoch:
            raise DataError(f"the position is of epoch {start.epoch}; epoch {epoch} was asked for")
        windows = in_background(
            lambda: self._source.pieces(epoch, start.window),
            lambda pieces: self._windows(pieces, epoch, whole=start.window == 0),
            name="satrap-data",
            seconds=seconds,
        )
        return self._batches(windows, start)

    def _windows(self, pieces: Iterator[Piece], epoch: int, *, whole: bool) -> Iterator[_Window]:
        """Decodes pieces and puts them together to windows. `whole`: from the beginning of the epoch."""
        decoder, gatherer = Decoder(self._job, labels=self._labels), Gatherer()
        blocks: list[Block] = []
        kept: list[NDArray[np.int64]] = []
        number = rows = 0

        def window() -> _Window:
            nonlocal blocks, kept, rows
            done = self._window(number, epoch, blocks, kept, gatherer)
            blocks, kept, rows = [], [], 0
            return done

        for piece in pieces:
            if blocks and piece.window != number:
                yield window()
            number = piece.window
            block = decoder.decode(piece)
            if self._split != "all" and self._valid > 0.0:
                held = held_out(self._seed, piece.row, block.rows, self._valid)
                kept.append(np.flatnonzero(held if self._split == "valid" else ~held) + rows)
            blocks.append(block)
            rows += block.rows
            closes = piece.closes
            del piece, block  # their memory can go while the consumer works
            if closes:
                yield window()
        if blocks:
            yield window()
        # What one of several workers has seen is too little to tell.
        if self._shuffle and whole and self._shard.world == 1:
            decoder.require_positives()

    def _window(
        self, number: int, epoch: int, blocks: list[Block], kept: list[NDArray[np.int64]], gatherer: Gatherer
    ) -> _Window:
        chosen = np.concatenate(kept) if kept else None
        if self._shuffle:
            count = sum(b.rows for b in blocks) if chosen is None else len(chosen)
            # Windows of one number at several workers are different windows: each has a key of its own.
            rank, world = self._shard
            order = permutation(count, key(Purpose.ROWS, self._seed, epoch, number * world + rank))
            return _Window(number, gatherer.gather(blocks, order if chosen is None else chosen[order]))
        return _Window(number, join(blocks) if chosen is None else gatherer.gather(blocks, chosen))

    def _batches(self, windows: Generator[_Window, None, None], start: Position) -> Generator[Batch, None, None]:
        """Cuts windows into batches; one that spans windows is joined from their ends."""
        size, epoch = self._batch_size, start.epoch
        pending: list[Block] = []  # rows at the end of earlier windows that do not fill a batch yet
        pending_rows = 0
        full: Block | None = None  # a batch that ended with its window: its position is the next window that has rows
        with closing(windows):
            for window in windows:
                at, rows = _first_row(window, start), window.block.rows
                if at == rows:
                    continue
                if full is not None:
                    yield to_batch(full, Position(epoch, window.number, 0))
                    full = None
                while rows - at >= size - pending_rows:
                    stop = at + size - pending_rows
                    block = join([*pending, cut(window.block, at, stop)])
                    pending, pending_rows, at = [], 0, stop
                    if at == rows:
                        full = block
                    else:
                        yield to_batch(block, Position(epoch, window.number, at))
                if at < rows:
                    pending.append(cut(window.block, at, rows))
                    pending_rows += rows - at
            if pending:
                full = join(pending)
            if full is not None:
                yield to_batch(full, Position(epoch + 1))


def _first_row(window: _Window, start: Position) -> int:
    """The first row of a window that is still to be handed out."""
    if window.number != start.window:
        return 0
    if start.row > window.block.rows:
        raise DataError(
            f"the position says that {start.row} rows of window {start.window} were read, but it has "
            f"{window.block.rows}; the data is not what it was when the position was saved"
        )
    return start.row


def _valid_fraction(job: Job, split: Split) -> float:
    """The fraction of rows held out for validation; 0 where validation has files of its own, or there is none."""
    valid = job.data.valid
    fraction = float(valid) if isinstance(valid, int | float) else 0.0
    if split == "valid" and fraction == 0.0:
        what = "is 0" if isinstance(valid, int | float) else "names files; read those with split='all'"
        raise JobError(f"data.valid {what}: there is no validation part to split off the training rows")
    return fraction


def _batch_sizes(job: Job, batch_size: int | None, shard: Shard) -> list[int]:
    """Samples of a batch of each worker."""
    if not 0 <= shard.rank < shard.world:
        raise JobError(f"there is no worker {shard.rank} among {shard.world}: they are numbered from 0")
    if batch_size is not None:
        return [batch_size] * shard.world
    whole = job.train.batch_size
    if whole < shard.world:
        raise JobError(f"train.batch_size is {whole}: {shard.world} workers need at least one sample each")
    return [share(whole, rank, shard.world) for rank in range(shard.world)]
