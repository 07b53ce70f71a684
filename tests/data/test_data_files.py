"""Paths, globs, folders and URLs name the files one expects, in a fixed order, or are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from data_reference import job_of, write

from satrap.data import Reader
from satrap.data.files import find_files
from satrap.errors import DataError
from satrap.schema import Categorical


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = ["b.parquet", "a.parquet", "sub/c.parquet", "sub/deep/d.pq", "_SUCCESS", "_temporary/x.parquet"]
    names += ["notes.txt", ".hidden.parquet", "day=2/part-0.parquet"]
    for i, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, {"a": [i], "y": [0]}) if "parquet" in name or "pq" in name else path.write_text("")
    return tmp_path


def names(found: list[Any], root: Path) -> list[str]:
    return [os.path.relpath(f.path, root) for f in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.parquet", "b.parquet", "day=2/part-0.parquet", "sub/c.parquet", "sub/deep/d.pq"]),
        ("*.parquet", ["a.parquet", "b.parquet"]),
        (".h*", [".hidden.parquet"]),
        ("[ab].parquet", ["a.parquet", "b.parquet"]),
        ("[!a].parquet", ["b.parquet"]),
        ("?.parquet", ["a.parquet", "b.parquet"]),
        ("sub/*", ["sub/c.parquet"]),
        ("sub/**", ["sub/c.parquet", "sub/deep/d.pq"]),
        ("**/d.pq", ["sub/deep/d.pq"]),
        ("*/c.parquet", ["sub/c.parquet"]),
        ("day=2/part-0.parquet", ["day=2/part-0.parquet"]),
    ],
)
def test_globs_and_folders_give_sorted_files(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_files(str(tree / pattern)), tree) == expected


def test_several_paths_keep_the_order_given(tree: Path) -> None:
    assert names(find_files([tree / "sub" / "c.parquet", f"{tree}/[ab].parquet"]), tree) == [
        "sub/c.parquet",
        "a.parquet",
        "b.parquet",
    ]


def test_relative_paths_and_globs_are_taken_from_here(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert [f.path for f in find_files(["a.parquet", "sub/*.parquet"])] == ["a.parquet", "sub/c.parquet"]
    assert [f.path for f in find_files("./[ab].parquet")] == ["./a.parquet", "./b.parquet"]
    assert [f.path for f in find_files("b*.parquet")] == ["b.parquet"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.parqet"], "there is no file '.*a.parqet'; did you mean 'a.parquet'?"),
        (["x*.parquet"], "no file matches"),
        (["nowhere/x.parquet"], "there is no file"),
        (["a.parquet", "*.parquet"], "matched twice, by"),
        (["notes.txt"], "cannot tell the format by the name; set data.format"),
        (["empty"], "holds no data files"),
        ([], "no data files given"),
    ],
)
def test_paths_that_mean_nothing_are_refused(tree: Path, paths: list[str], message: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_files([tree / p for p in paths])


def test_files_of_different_formats_are_refused(tree: Path) -> None:
    (tree / "sub" / "e.csv").write_text("a,y\n")
    with pytest.raises(DataError, match="different formats"):
        find_files(tree)


def test_parquet_file_with_an_unknown_ending_is_recognised_by_its_first_bytes(tree: Path) -> None:
    (tree / "a.parquet").rename(tree / "part-00000")
    assert find_files(tree / "part-00000")[0].format == "parquet"


def test_format_that_is_given_overrides_the_ending(tree: Path) -> None:
    (tree / "day_0").write_text("")
    assert find_files(tree / "day_0", "criteo")[0].format == "criteo"


def test_file_whose_name_has_glob_characters_is_found_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a[1].parquet", {"a": [1], "y": [0]})
    assert len(find_files(tmp_path / "a[1].parquet")) == 1


def rows_of(path: Any, **options: Any) -> list[int]:
    reader = Reader(job_of(Categorical(name="a")), path, seed=0, shuffle=False, **options)
    return [v for b in reader.epoch() for v in b.ids["a"].values.tolist()]


def test_fsspec_urls_are_read() -> None:
    memory = fsspec.filesystem("memory")
    for i in range(2):
        with memory.open(f"/satrap-test/{i}.parquet", "wb") as f:
            pq.write_table(pa.table({"a": [i], "y": [0]}), f)
    try:
        assert rows_of("memory://satrap-test/*.parquet") == [0, 1]
        assert rows_of("memory://satrap-test") == [0, 1]
        # Messages name files so that they can be pasted back.
        assert find_files("memory://satrap-test/1.parquet")[0].name.startswith("memory://")
    finally:
        memory.rm("/satrap-test", recursive=True)


def test_file_systems_may_be_given(tree: Path) -> None:
    subtree = pafs.SubTreeFileSystem(str(tree), pafs.LocalFileSystem())
    assert rows_of(["sub/c.parquet", "b.parquet"], filesystem=subtree) == [2, 0]
    assert rows_of(str(tree / "b.parquet"), filesystem=fsspec.filesystem("file")) == [0]
    assert rows_of(f"file://{tree}/b.parquet") == [0]


def test_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"cannot open 'nosuch://bucket/a\.parquet'"):
        find_files("nosuch://bucket/a.parquet")
