"""From a job's model spec to a module."""

from __future__ import annotations

from typing import assert_never

from torch import nn

from satrap.models.custom import custom
from satrap.models.dcn import DCNv2Network
from satrap.models.deepfm import DeepFMNetwork
from satrap.models.dlrm import DLRMNetwork
from satrap.models.inputs import Inputs
from satrap.models.mlp import MLPNetwork
from satrap.models.wide_deep import WideDeepNetwork
from satrap.schema import DLRM, MLP, Custom, DCNv2, DeepFM, Job, WideDeep


def build(job: Job) -> nn.Module:
    """The job's dense network, freshly initialised from torch's global random state.

    `torch.manual_seed(job.seed)` before it makes the weights a function of the job alone. Raises JobError where
    the user's own module cannot be loaded; that a spec fits its features is checked when a Job is made.

    >>> from satrap.schema import Categorical, Data, Label
    >>> job = Job(data=Data(train=("a.parquet",), label=(Label(column="y"),)), features=(Categorical(name="city"),))
    >>> type(build(job)).__name__
    'MLPNetwork'
    """
    spec, inputs = job.model, Inputs.of(job)
    match spec:
        case MLP():
            return MLPNetwork(spec, inputs)
        case DLRM():
            return DLRMNetwork(spec, inputs)
        case DCNv2():
            return DCNv2Network(spec, inputs)
        case DeepFM():
            return DeepFMNetwork(spec, inputs)
        case WideDeep():
            return WideDeepNetwork(spec, inputs)
        case Custom():
            return custom(spec)
        case _:
            assert_never(spec)
