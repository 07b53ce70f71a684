"""Two runs in one folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from satrap.checkpoint import claim
from satrap.errors import CheckpointError

HOLDER = """
import sys
from satrap.checkpoint import claim
with claim(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_a_run_of_another_process_holds_is_refused_and_names_it(tmp_path: Path) -> None:
    # Each removed the other's drafts and old checkpoints.
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"in use by another run .process {holder.pid} on "), claim(tmp_path):
            pass
        holder.kill()
    with claim(tmp_path):
        pass  # a process that was killed holds nothing


def test_a_folder_is_free_again_after_the_run_and_after_its_error(tmp_path: Path) -> None:
    def fails() -> None:
        with claim(tmp_path):
            raise ZeroDivisionError

    with claim(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError):
        fails()
    with claim(tmp_path):
        pass


def test_two_claims_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(CheckpointError, match="choose another run folder"), claim(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"run folder .*file/run cannot be made"),
        claim(tmp_path / "file" / "run"),
    ):
        pass


def test_a_folder_that_nothing_can_be_written_in_is_named_without_the_file_of_the_lock() -> None:
    # The message named `.lock`, a file that no user has ever heard of.
    with pytest.raises(CheckpointError, match="/proc/self") as caught, claim("/proc/self"):
        pass
    assert "lock" not in str(caught.value)
