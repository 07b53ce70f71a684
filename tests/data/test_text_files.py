"""CSV, TSV and Criteo files mean the same as Parquet files of the same rows."""

from __future__ import annotations

import bz2
import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from data_reference import MISSING, job_of, rows_in, whole_epoch, write
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from satrap.data import Reader
from satrap.data.text import CRITEO_COLUMNS
from satrap.errors import DataError
from satrap.schema import Categorical, Job, Label, Numeric, Sequence

CRITEO_LINE = "\t".join(["1", "5", "", "-1", *["7"] * 10, "68fd1e64", "", "12345678", *["ab"] * 23])


def hashed(text: str) -> int:
    return xxh3_64_intdigest(text.encode())


def write_text(path: Path, text: str) -> Path:
    data = text.encode()
    opened: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress}
    path.write_bytes(opened.get(path.suffix, bytes)(data))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.bz2", "a.tsv", "a.tsv.gz"])
def test_text_file_gives_the_batches_of_the_same_rows_in_parquet(tmp_path: Path, name: str) -> None:
    rows = [
        {"user": 17, "city": "Bern", "price": 1.5, "w": 1.0, "y": 0},
        {"user": -3, "city": None, "price": None, "w": 2.0, "y": 1},
        {"user": 2**63, "city": 'a, "b"\nc', "price": -0.25, "w": 0.0, "y": 1},
    ]
    separator = "\t" if ".tsv" in name else ","
    lines = [["user", "city", "price", "w", "y"], ["17", "Bern", "1.5", "1", "0"], ["-3", "", "", "2", "1"]]
    lines.append([str(2**63), '"a, ""b""\nc"', "-0.25", "0", "1"])
    text = write_text(tmp_path / name, "".join(separator.join(line) + "\n" for line in lines))
    table = pa.table(
        {
            "user": pa.array([r["user"] % 2**64 for r in rows], pa.uint64()),
            **{k: pa.array([r[k] for r in rows]) for k in ("city", "price", "w", "y")},
        }
    )
    job = job_of(
        Categorical(name="user"), Categorical(name="city"), Numeric(name="price", indicator=True), data={"weight": "w"}
    )
    parquet = write(tmp_path / "a.parquet", table)
    assert rows_in([whole_epoch(job, text)]) == rows_in([whole_epoch(job, parquet)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**65), 2**65) | st.text("0123456789-+ae. ", max_size=21), min_size=1, max_size=20))
def test_ids_spelled_as_integers_are_those_integers_and_others_are_hashed(values: list[Any]) -> None:
    spelled = [str(v) for v in values]
    with tempfile.TemporaryDirectory() as folder:
        path = write_text(Path(folder) / "a.csv", "a,y\n" + "".join(f"{v},0\n" for v in spelled))
        ids = whole_epoch(job_of(Categorical(name="a")), path).ids["a"].values.tolist()

    def expected(text: str) -> int:
        text = text.strip(" ")
        if not text:
            return MISSING
        try:
            value = int(text)
        except ValueError:
            return hashed(text)
        # 007 and +7 are other texts than 7, and must stay other ids.
        return value % 2**64 if str(value) == text and -(2**63) <= value < 2**64 else hashed(text)

    assert ids == [expected(v) for v in spelled]


def test_ids_do_not_depend_on_the_other_values_of_the_column(tmp_path: Path) -> None:
    # A reader that guesses a column's type reads 17 as a number here and as text there: two ids for one user.
    numbers = write_text(tmp_path / "1.csv", "a,y\n17,0\n18,0\n")
    mixed = write_text(tmp_path / "2.csv", "a,y\n17,0\nx18,0\n")
    job = job_of(Categorical(name="a"))
    first = [whole_epoch(job, p).ids["a"].values.tolist()[0] for p in (numbers, mixed)]
    assert first == [17, 17]


def test_missing_numbers_are_recognised_by_their_usual_spellings(tmp_path: Path) -> None:
    path = write_text(
        tmp_path / "a.csv", "a,y\n" + "".join(f"{v},1\n" for v in ["NA", "null", "nan", " ", "inf", " 2 "])
    )
    batch = whole_epoch(job_of(Numeric(name="a", indicator=True)), path)
    assert batch.numeric.tolist() == [[0, 1]] * 5 + [[2, 0]]


@pytest.mark.parametrize(
    ("text", "job", "message"),
    [
        ("a,y\n1,0\nx7,1\n", job_of(Numeric(name="a")), "column 'a', row 1 (the first is 0): 'x7' is not a number"),
        ("a,y\n1,0\n2,maybe\n", job_of(Categorical(name="a")), "column 'y', row 1 (the first is 0): 'maybe'"),
        ("a,y\n1,0\n2,3\n", job_of(Categorical(name="a")), "column 'y', row 1 (the first is 0): the label is '3'"),
        ("a,y\n1,0\n2,\n", job_of(Categorical(name="a")), "row 1 (the first is 0): the label is missing"),
        ("a,y\n1,0\n2\n", job_of(Categorical(name="a")), "Expected 2 columns, got 1"),
        ("a,y\n1,0\n", job_of(Categorical(name="aa")), "no column 'aa', which features.aa reads; did you mean 'a'?"),
        ("a,y\n1,0\n", job_of(Sequence(name="a", max_length=3)), "one value a field; convert the data to Parquet"),
        ("a,y\n1,0\n", job_of(Numeric(name="a", width=2)), "one value a field; convert the data to Parquet"),
        ("a,a,y\n1,1,0\n", job_of(Categorical(name="a")), "2 columns are named 'a'"),
        ("", job_of(Categorical(name="a")), "the file is empty"),
        ("a,y\n1.5,0\n", job_of(Categorical(name="a", missing="error", buckets=(1.0,))), None),
        ("a,y\n,0\n", job_of(Categorical(name="a", missing="error")), "row 0 (the first is 0): the value is missing"),
    ],
)
def test_bad_text_is_named_by_its_place_and_value(tmp_path: Path, text: str, job: Job, message: str | None) -> None:
    path = write_text(tmp_path / "a.csv", text)
    if message is None:
        assert whole_epoch(job, path).ids["a"].values.tolist() == [1]
        return
    with pytest.raises(DataError) as caught:
        whole_epoch(job, path)
    assert message in str(caught.value)
    assert "a.csv" in str(caught.value)


def test_rows_are_counted_across_blocks_of_a_long_file(tmp_path: Path) -> None:
    rows = 900_000  # several blocks of text
    path = write_text(tmp_path / "a.csv", "a,y\n" + "123456,0\n" * rows + "oops,0\n")
    with pytest.raises(DataError, match=rf"column 'a', row {rows} "):
        whole_epoch(job_of(Numeric(name="a")), path)


def test_labels_may_be_spelled_as_bools_or_named_by_positive(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", "a,y\n1,True\n2,false\n3,1\n4,0.0\n")
    assert whole_epoch(job_of(Categorical(name="a")), path).labels[:, 0].tolist() == [1, 0, 1, 0]
    path = write_text(tmp_path / "b.csv", "a,y\n1, >50K\n2,<=50K\n")
    job = job_of(Categorical(name="a"), data={"label": (Label(column="y", positive=">50K"),)})
    assert whole_epoch(job, path).labels[:, 0].tolist() == [1, 0]
    path = write_text(tmp_path / "c.csv", "a,y\n1,2\n2,1\n")
    job = job_of(Categorical(name="a"), data={"label": (Label(column="y", positive=2),)})
    assert whole_epoch(job, path).labels[:, 0].tolist() == [1, 0]


def test_one_column_may_be_an_id_and_a_number(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", "a,y\n5,0\n7,1\n")
    batch = whole_epoch(job_of(Categorical(name="id", column="a"), Numeric(name="n", column="a")), path)
    assert batch.ids["id"].values.tolist() == [5, 7]
    assert batch.numeric.tolist() == [[5], [7]]


def test_blanks_around_names_and_values_do_not_count(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", "a, b, y\n1, Bern, 0\n2,Bern ,1\n")
    batch = whole_epoch(job_of(Categorical(name="b"), Numeric(name="a")), path)
    assert batch.ids["b"].values.tolist() == [hashed("Bern")] * 2


def test_rows_of_text_files_are_known_once_they_were_read(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", "a,y\n" + "1,0\n" * 10)
    reader = Reader(job_of(Categorical(name="a"), batch=4), path, seed=0, shuffle=False)
    assert (reader.rows, reader.batches_per_epoch) == (None, None)
    assert sum(b.size for b in reader.epoch()) == 10
    assert (reader.rows, reader.batches_per_epoch) == (10, 3)


def criteo_job(**data: Any) -> Job:
    numbers = [Numeric(name=f"I{i}", transform="log", indicator=True) for i in range(1, 14)]
    ids = [Categorical(name=f"C{i}") for i in range(1, 27)]
    return job_of(*numbers, *ids, data={"format": "criteo", "label": (Label(column="label"),), **data})


@pytest.mark.parametrize("name", ["train.txt", "day_0.gz"])
def test_criteo_file_is_read_by_its_column_numbers_and_its_ids_are_always_hashed(tmp_path: Path, name: str) -> None:
    path = write_text(tmp_path / name, (CRITEO_LINE + "\n") * 3)
    batch = whole_epoch(criteo_job(), path)
    assert batch.labels.tolist() == [[1]] * 3
    assert batch.numeric[0, :6].tolist() == pytest.approx([1.791759, 0, 0, 1, -0.693147, 0])
    # "12345678" is a hexadecimal number that happens to have no letter.
    assert [batch.ids[c].values[2] for c in ("C1", "C2", "C3")] == [hashed("68fd1e64"), MISSING, hashed("12345678")]


def test_criteo_test_file_without_labels_is_read_for_prediction_only(tmp_path: Path) -> None:
    path = write_text(tmp_path / "test.txt", CRITEO_LINE.split("\t", 1)[1] + "\n")
    assert whole_epoch(criteo_job(), path, labels=False).ids["C1"].values.tolist() == [hashed("68fd1e64")]
    with pytest.raises(DataError, match="no column 'label'"):
        whole_epoch(criteo_job(), path)


def test_criteo_format_with_another_number_of_fields_is_refused(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "1\t2\t3\n")
    with pytest.raises(DataError, match="the first line has 3 tab-separated fields; the Criteo format has 40"):
        whole_epoch(criteo_job(), path)


def test_criteo_format_has_forty_columns() -> None:
    assert (len(CRITEO_COLUMNS), CRITEO_COLUMNS[0], CRITEO_COLUMNS[13], CRITEO_COLUMNS[39]) == (
        40,
        "label",
        "I13",
        "C26",
    )


def test_split_of_a_text_file_is_that_of_the_same_rows_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(500)), "y": [0, 1] * 250})
    pacsv.write_csv(table, tmp_path / "a.csv")
    write(tmp_path / "a.parquet", table, row_group_size=64)
    job = job_of(Categorical(name="a"), data={"valid": 0.3})
    held = []
    for name in ("a.csv", "a.parquet"):
        reader = Reader(job, tmp_path / name, seed=9, shuffle=False, split="valid")
        held.append([v for b in reader.epoch() for v in b.ids["a"].values.tolist()])
    assert held[0] == held[1]
    assert 100 < len(held[0]) < 200
