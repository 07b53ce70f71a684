from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from model_jobs import IDS, make_inputs, make_job

from satrap.errors import JobError
from satrap.models import build
from satrap.schema import Custom

MODULE = """
from torch import nn

class Sum(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, numeric, embeddings):
        return self.scale * embeddings.cat().sum(1)

def with_neighbour():
    import neighbour_of_my_model
    return Sum(neighbour_of_my_model.SCALE)

def wrong():
    return "a string"

NUMBER = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's module in it, as the `satrap` command finds it: not on the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "my_model.py").write_text(MODULE)
    (tmp_path / "neighbour_of_my_model.py").write_text("SCALE = 3.0")
    yield tmp_path
    for name in [k for k, m in sys.modules.items() if str(getattr(m, "__file__", None)).startswith(str(tmp_path))]:
        del sys.modules[name]


def refused(path: str, **args: object) -> str:
    with pytest.raises(JobError) as e:
        build(make_job(IDS, Custom(path=path, args=args)))
    return str(e.value)


def test_module_in_the_working_directory_is_found_and_gets_its_args(here: Path) -> None:
    # The `satrap` command has its own folder on the path, not the user's.
    job = make_job(IDS, Custom(path="my_model:Sum", args={"scale": 2.0}))
    numeric, embeddings, _ = make_inputs(job)
    torch.testing.assert_close(build(job)(numeric, embeddings), 2 * embeddings.cat().sum(1))


def test_module_may_import_its_neighbour_when_it_is_called(here: Path) -> None:
    assert build(make_job(IDS, Custom(path="my_model:with_neighbour"))).scale == 3.0


def test_missing_module_says_where_it_was_looked_for(here: Path) -> None:
    assert "no module named 'my_modell'" in refused("my_modell:Sum")
    assert str(here) in refused("my_modell:Sum")


def test_missing_submodule_names_the_part_that_is_missing(here: Path) -> None:
    assert "'torch.nothing'" in refused("torch.nothing:Sum")


def test_missing_class_names_the_nearest(here: Path) -> None:
    assert "did you mean 'Sum'" in refused("my_model:Sun")


def test_module_that_needs_another_names_that_one(here: Path) -> None:
    # "No module named my_model2" would send the user looking for a file that is there.
    (here / "my_model2.py").write_text("import not_installed_anywhere")
    assert refused("my_model2:Sum").endswith("not installed: not_installed_anywhere")


def test_module_that_fails_on_import_shows_its_error(here: Path) -> None:
    (here / "my_model3.py").write_text("1 / 0")
    assert "importing my_model3 failed: ZeroDivisionError" in refused("my_model3:Sum")


def test_wrong_argument_shows_the_call(here: Path) -> None:
    message = refused("my_model:Sum", scael=2)
    assert message.startswith("model.args: my_model:Sum(scael=2) failed: TypeError")


def test_what_is_not_a_module_is_refused(here: Path) -> None:
    assert "gives a str, not a torch.nn.Module" in refused("my_model:wrong")
    assert "is a int, not a class or function" in refused("my_model:NUMBER")
