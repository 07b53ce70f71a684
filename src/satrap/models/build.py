"""From a job's model spec to a module."""

from __future__ import annotations

from torch import nn

from satrap.errors import JobError
from satrap.models.inputs import Inputs
from satrap.models.mlp import MLPNetwork
from satrap.schema import MLP, Job


def build(job: Job) -> nn.Module:
    """The job's dense network, freshly initialised from torch's global random state.

    `torch.manual_seed(job.seed)` before it makes the weights a function of the job alone. Raises JobError where the
    spec does not fit the features, or the user's own module cannot be loaded.
    """
    spec, inputs = job.model, Inputs.of(job)
    if isinstance(spec, MLP):
        return MLPNetwork(spec, inputs)
    raise JobError(f"model: {type(spec).__name__} is not known")
