"""torch's compute threads and the cores they share with lookups, pushes and the reader."""

from __future__ import annotations

import threading

import torch

_started = threading.Lock()


def compute_threads(n: int) -> None:
    """Sets the threads of torch's compute, and sees to it that those that wait do not keep others from the cores.

    torch's OpenMP threads spin while they wait for each other, some milliseconds at a time. That is right as long as
    there is a core for each of them, but the engine and the reader need cores as well: on two cores, a spinning thread
    then waits for one that the scheduler has put aside, and training was four times slower. OpenMP cuts the spinning
    short when it knows of more threads than cores. `import satrap` asks for that by OMP_WAIT_POLICY, which counts only
    where torch is imported later; a second team, made here and left asleep, does it in every case.
    """
    torch.set_num_threads(n)
    # Once a process, and never released: the team lasts as long as the thread that made it.
    if n > 1 and _started.acquire(blocking=False):
        threading.Thread(target=_make_team, name="satrap-openmp", daemon=True).start()


def _make_team() -> None:
    torch.zeros(1 << 18).add_(1.0)  # large enough to be shared out
    threading.Event().wait()
