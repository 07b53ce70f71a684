"""The user's own module, by import path."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from torch import nn

from satrap.errors import JobError, did_you_mean
from satrap.schema import Custom


def custom(spec: Custom) -> nn.Module:
    """Imports `package.module:Class`, calls it with the spec's args, and gives back the module that comes out.

    The working directory comes first on the import path, as for `python script.py`. Runs the user's code, so the path
    must come from the job the user gave, never from a checkpoint. Raises JobError saying which part failed.

    >>> custom(Custom(path="torch.nn:Linear", args={"in_features": 2, "out_features": 1}))
    Linear(in_features=2, out_features=1, bias=True)
    """
    make = _named(spec.path)
    try:
        module = make(**spec.args)
    except Exception as e:
        raise JobError(f"model.args: {spec.path}({_call(spec.args)}) failed: {type(e).__name__}: {e}") from e
    if not isinstance(module, nn.Module):
        raise JobError(f"model.path: {spec.path} gives a {type(module).__name__}, not a torch.nn.Module")
    return module


def _named(path: str) -> Any:
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    # It stays there: the user's module may import its neighbours later, when it is called.
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be newer than what the import system knows of its folder
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or not (module_name + ".").startswith(e.name + "."):
            raise JobError(f"model.path: {module_name} needs a module that is not installed: {e.name}") from e
        raise JobError(
            f"model.path: no module named '{e.name}', neither installed nor in {here}; run the command from the folder "
            "that holds it, or add that folder to PYTHONPATH"
        ) from e
    except Exception as e:
        raise JobError(f"model.path: importing {module_name} failed: {type(e).__name__}: {e}") from e
    if not hasattr(value, name):
        public = [k for k in vars(value) if not k.startswith("_")]
        raise JobError(f"model.path: {module_name} has no '{name}'; {did_you_mean(name, public)}")
    value = getattr(value, name)
    if not callable(value):
        raise JobError(f"model.path: {path} is a {type(value).__name__}, not a class or function")
    return value


def _call(args: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in args.items())
