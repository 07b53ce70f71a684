"""A checkpoint that is being written, while training goes on where its rows are kept as of a moment."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from satrap import checkpoint
from satrap.errors import CheckpointError, SaveError, ServiceError, StoreError
from satrap.ps import Cut

THREADS_BEHIND = 1
"""That write beside training: it needs the cores more."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of saving a checkpoint: the same at every worker."""

    step: int
    path: Path | None
    """None: it could not be written."""
    problem: str | None
    """What went wrong, with it or with removing what need not be kept."""


class Writing:
    """Writes a checkpoint and removes what need not be kept: in a thread where there is a cut, else at once."""

    def __init__(self, folder: Path, contents: checkpoint.Contents, cut: Cut | None, *, keep: int, best: bool) -> None:
        self._folder, self._contents, self._cut, self._keep, self._best = folder, contents, cut, keep, best
        self._saved: Saved | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.told = False
        """Whether somebody has taken note of the result."""
        self.lost = False
        """The rows could not be kept until they were written."""
        if cut is None:
            self._saved = self._write(None)
            return
        self._thread = threading.Thread(target=self._run, name="satrap-checkpoint", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether `result` does not wait."""
        return self._thread is None or not self._thread.is_alive()

    def result(self) -> Saved:
        """What became of it. Waits for it; raises what can never be saved (CheckpointError), and bugs."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._saved is not None
        return self._saved

    def end(self, *, at_once: bool) -> None:
        """Waits until nothing is written any more. `at_once`: gives up what is not whole yet. Raises nothing."""
        if at_once and self._cut is not None:
            self._cut.close()
        if self._thread is not None:
            with suppress(KeyboardInterrupt):
                self._thread.join()

    def _run(self) -> None:
        assert self._cut is not None
        try:
            self._saved = self._write(self._cut)
        except BaseException as e:
            self._error = e
        finally:
            self._cut.close()

    def _write(self, cut: Cut | None) -> Saved:
        step = self._contents.step
        try:
            if cut is None:
                path = checkpoint.write(self._folder, self._contents)
            else:
                path = checkpoint.write(self._folder, self._contents, threads=THREADS_BEHIND, written=cut.done)
        except SaveError as e:
            return Saved(step, None, str(e))
        except (StoreError, ServiceError) as e:
            if cut is None:
                raise
            self.lost = isinstance(e, StoreError)
            return Saved(
                step,
                None,
                f"cannot save the checkpoint of step {step}: {e}. Checkpoints before it are intact; the "
                "next one is tried as ever",
            )
        try:
            if self._best:
                checkpoint.mark_best(path)
            checkpoint.retain(self._folder, self._keep)
        except CheckpointError as e:
            return Saved(step, path, f"{path} is saved; {e}")
        return Saved(step, path, None)
