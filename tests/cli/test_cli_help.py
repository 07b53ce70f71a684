"""The command line explains itself, quickly."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_command import Satrap

from satrap import __version__

COMMANDS = [
    "train", "evaluate", "predict", "inspect", "export", "import", "fill", "report", "validate", "top", "rehearse",
    "leave",
]  # fmt: skip


def test_help_lists_every_command(called: Satrap) -> None:
    text = called("--help").out
    assert all(f" {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_of_it(name: str, called: Satrap) -> None:
    text = called(name, "--help").out
    assert "Examples" in text
    assert f"$ satrap {name} " in text
    assert "--debug" in text


def test_without_a_command_the_help_is_shown_as_wrong_usage(called: Satrap) -> None:
    outcome = called(code=2)
    assert "Usage: satrap" in outcome.out + outcome.err


def test_the_version_is_that_of_the_package(called: Satrap) -> None:
    assert called("--version").out == f"satrap {__version__}\n"


def test_shell_completion_can_be_shown(called: Satrap, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shell is looked for among the parents of this process, where there need not be one.
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    assert "_SATRAP_COMPLETE" in called("--show-completion").out


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_neither_torch_nor_pyarrow_nor_numpy(words: list[str]) -> None:
    # They take seconds to import, and a person asking for help would wait for them.
    code = (
        "import sys\n"
        "from satrap.cli import app\n"
        f"app({words!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'matplotlib', 'fsspec'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_option_is_wrong_usage(called: Satrap) -> None:
    assert "--labl" in called("train", "a.parquet", "--labl", "click", code=2).err
