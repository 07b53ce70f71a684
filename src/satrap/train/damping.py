"""What staleness does to the direction that all samples share, and how it is damped.

With k pushes outstanding a lookup does not see what the last k batches have learned. For most rows that hardly matters:
a batch touches few rows of the one before. But one direction of the tables is touched by every sample: all rows of a
feature moving by the same vector, which is what happens when the predictions are too high, or too low, for everyone.
k + 1 batches push it the same way before the first of them shows; it overshoots, is pushed back k + 1 times, and
swings. Every row is dragged along, and the adaptive optimizers of the rows take the swings for their own gradients.

That direction is no matter of rows. Moving all rows of a feature by one vector is, for a network whose first layer
follows, the same as moving that layer's bias; so the dense weights, which are not stale, learn it anyway. Its part of
the gradient is therefore divided by k + 1, the number of batches that will push it unseen: they add up to one step.
"""

from __future__ import annotations

from typing import Any


def damp(lookup: Any, outstanding: int) -> None:
    """Divides what all samples' gradients of the pooled tensor [B, Σ] have in common, their mean, by 1 + `outstanding`,
    the pushes that the lookup has not seen. Changes the gradient in place; with 0 it changes nothing.

    On the CPU by one thread, so that the bits do not depend on how many there are. Sequences are left as they are.
    """
    gradient = lookup.pooled.grad
    if gradient is None or not outstanding or not gradient.numel():
        return
    share = outstanding / (1.0 + outstanding)
    if gradient.device.type == "cpu":
        array = gradient.numpy()
        array -= share * array.mean(axis=0)
    else:
        gradient.sub_(gradient.mean(0), alpha=share)
