"""Directories that several processes make at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from satrap.durable.files import LocalFiles, make_directories


class Late(LocalFiles):
    """Another process makes each directory between the look and the making."""

    def make_directory(self, path: Path) -> None:
        path.mkdir()
        super().make_directory(path)


def test_a_directory_that_another_makes_meanwhile_is_as_good(tmp_path: Path) -> None:
    # Two servers that began at once met over the folder of their histories, and one of them ended the run.
    make_directories(tmp_path / "history" / "server-1", Late())
    assert (tmp_path / "history" / "server-1").is_dir()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("")
    with pytest.raises(FileExistsError):
        make_directories(tmp_path / "history", Late())
