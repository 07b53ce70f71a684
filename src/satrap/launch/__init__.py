"""Launching: the processes of a job that is more than one process, on this machine or on a Ray cluster.

Owns: where servers and workers run, their life and death, what the driver shows of them, going back to a checkpoint
when one of them dies. May import: train, ps, schema, observe, errors; Ray, and train with its torch, inside functions.
Must never: put rows or gradients through Ray, or decide anything about the model.
"""

from satrap.launch.run import run

__all__ = ["run"]
