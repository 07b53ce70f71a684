"""What a user gets from `pip install .` is whole: the native module, types, licence, and the command."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

import satrap
from satrap.store import _native

ROOT = Path(__file__).parents[2]
HOME = Path(satrap.__file__).parent


@pytest.fixture
def distribution() -> importlib.metadata.Distribution:
    try:
        found = importlib.metadata.distribution("satrap")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("satrap runs from its source here; `make test` installs it")
    if Path(str(found.locate_file("satrap"))).resolve() != HOME.resolve():
        pytest.skip(f"the satrap under test is {HOME}, not the installed one")
    return found


def test_the_version_is_said_in_one_way() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == satrap.__version__


def test_the_native_module_is_that_of_the_package() -> None:
    assert Path(str(_native.__file__)).parent == HOME / "store"


def test_the_installed_package_is_whole_and_nothing_but_the_package(
    distribution: importlib.metadata.Distribution,
) -> None:
    files = {str(f) for f in distribution.files or []}
    assert {"satrap/py.typed", "satrap/store/_native.pyi", "satrap/__main__.py"} <= files
    assert any(f.startswith("satrap/store/_native.") and f.endswith(".so") for f in files)
    assert {Path(f).name for f in files if "/licenses/" in f} == {"LICENSE", "NOTICE"}
    tops = {f.split("/")[0] for f in files if not f.startswith("..")}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"satrap"}


def test_every_source_file_is_installed(distribution: importlib.metadata.Distribution) -> None:
    installed = {str(f) for f in distribution.files or []}
    sources = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*.py")}
    assert sources - installed == set()


def test_the_console_command_is_declared(distribution: importlib.metadata.Distribution) -> None:
    found = {e.name: e.value for e in distribution.entry_points if e.group == "console_scripts"}
    assert found == {"satrap": "satrap.cli:main"}
