"""A job survives its YAML form, and YAML's surprises do not reach it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from satrap.errors import JobError
from satrap.schema import (
    DLRM,
    MLP,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Categorical,
    Checkpointing,
    Constant,
    Custom,
    Data,
    DCNv2,
    DeepFM,
    EarlyStopping,
    Ftrl,
    Job,
    Label,
    Normal,
    Numeric,
    Pooling,
    Rounding,
    RowWiseAdagrad,
    Schedule,
    Sequence,
    StateFormat,
    Store,
    Table,
    Train,
    TruncatedNormal,
    Uniform,
    ValueFormat,
    WideDeep,
    WireFormat,
    Zeros,
    load_job,
    save_job,
)

FP16 = ValueFormat.FP16

LINES = """
data: {train: a.parquet, label: click}
features: [{kind: categorical, name: user}, {kind: numeric, name: age}]
"""


def job_of(text: str, tmp_path: Path) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(LINES + text)
    return load_job(path)


def small(name: str = "job", features: tuple[Categorical | Sequence | Numeric, ...] = (Numeric(name="x"),)) -> Job:
    return Job(name=name, data=Data(train=("a",), label=(Label(column="label_"),)), features=features)


INITIALIZERS = [Uniform(low=-1, high=2), Normal(std=0.5), TruncatedNormal(mean=1.0), Constant(value=0.1), Zeros()]
OPTIMIZERS = [SGD(momentum=0.9), Adagrad(), RowWiseAdagrad(), Adam(lr=0.1), AdamW(state=StateFormat.INT8), Ftrl(l1=1.0)]
MODELS = [MLP(hidden=()), DLRM(), DCNv2(low_rank=4), DeepFM(), WideDeep(), Custom(path="a.b:C", args={"n": [1, 2]})]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_a_job_with_every_part_set_is_equal_after_saving_and_loading(model: MLP, tmp_path: Path) -> None:
    many = [
        Table(
            name=f"t{i}",
            dim=4,
            format=list(ValueFormat)[1 + i % 3],
            rounding=[None, *Rounding][i % 3],
            wire=list(WireFormat)[i % 3],
            initializer=INITIALIZERS[i % 5],
            optimizer=o,
            max_gradient=1.0,
        )
        for i, o in enumerate(OPTIMIZERS)
    ]
    job = Job(
        name="all",
        seed=2**63 - 1,
        default_dim=4,
        default_format=ValueFormat.BF16,
        data=Data(
            train=("s3://bucket/a b.parquet", "c.csv"),
            label=(Label(column="y", positive=">50K"), Label(column="z", positive=1)),
            valid=("v.csv",),
            test=("t.csv",),
            format="csv",
            weight="w",
            shuffle_rows=0,
        ),
        features=(
            *(Categorical(name=f"f{i}", table=f"t{i}", pooling=Pooling.SQRTN, weights="ww") for i in range(6)),
            Categorical(name="b", buckets=(1.0, 2.5), missing="empty", max_length=3, table="t1"),
            Sequence(name="s", max_length=7, missing="error", table="t0"),
            Numeric(name="x", width=2, transform="log", scale="standard", mean=1.5, std=2.0, fill=1.0, indicator=True),
        ),
        tables=tuple(many),
        model=model,
        train=Train(
            optimizer=SGD(lr=1e-05),
            schedule=Schedule(kind="cosine", warmup_steps=3, decay_steps=9, end_factor=0.1),
            early_stopping=EarlyStopping(metric="log_loss"),
            checkpoint=Checkpointing(every_steps=5),
        ),
        store=Store(partitions=8, threads=1),
    )
    save_job(job, tmp_path / "job.yaml")
    assert load_job(tmp_path / "job.yaml") == job


@settings(deadline=None)
@given(text=st.one_of(st.text(min_size=1), st.from_regex(r"[0-9.eE+_:-]{1,8}", fullmatch=True)))
@example(text="\x85")
@example(text="a\r\n b\u2028")
def test_any_text_survives_as_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # A column called 1e5, no, ~ or 2024-01-01 must not come back as a number, a bool, a null or a date.
    path = tmp_path_factory.mktemp("yaml") / "job.yaml"
    job = small(features=(Categorical(name=text),)) if text != "label_" else small()
    save_job(job, path)
    assert load_job(path) == job


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", ".001", "1.e-3", "+1e-3"])
def test_a_small_number_is_a_number_however_it_is_written(text: str, tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3 as the text "1e-3", because it has no dot.
    assert job_of(f"train: {{optimizer: {{kind: adam, lr: {text}}}}}", tmp_path).train.optimizer.lr == 0.001


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("1_000", 1000), ("0x10", 16), ("+5", 5)])
def test_an_integer_is_what_a_person_reads(text: str, value: int, tmp_path: Path) -> None:
    # YAML 1.1 reads 010 as eight.
    assert job_of(f"seed: {text}", tmp_path).seed == value


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "2024-01-01", "12:30", "1:2:3", "="])
def test_a_word_is_text_and_not_a_boolean_a_date_or_a_number_in_base_sixty(word: str, tmp_path: Path) -> None:
    # `positive: yes` is the commonest label value of all, and a boolean in YAML 1.1.
    job = job_of(f"name: {word}", tmp_path)
    assert job.name == word
    save_job(job, tmp_path / "again.yaml")
    assert load_job(tmp_path / "again.yaml").name == word


def test_a_saved_job_reads_the_same_in_another_yaml_reader(tmp_path: Path) -> None:
    # Text that only YAML 1.1 would take for something else is quoted all the same.
    save_job(small(name="no", features=(Categorical(name="1e5"), Categorical(name="12:30"))), tmp_path / "job.yaml")
    tree = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert (tree["name"], [f["name"] for f in tree["features"]]) == ("no", ["1e5", "12:30"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "line 5: the key 'seed' is given twice"),
        ("train: {epochs: 1, epochs: 2}", "line 4: the key 'epochs' is given twice"),
        ("? [a]\n: 1", "line 4: a key must be a word"),
        ("seed: [", "is not valid YAML"),
        ("seed: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("train: {epohcs: 2}", "did you mean 'epochs'?"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        job_of(text, tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "job.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3\n", "line 2, column 2: expected ',' or ']', but got ':' (in a list that begins in line 1)"),
        ("a: {b: 1\n", "line 2, column 1: expected ',' or '}', but got the end of the file (in a mapping"),
        ("a: 1\n b: 2\n", "line 2, column 3: a colon after a key is not allowed here"),
        ("\ta: 1\n", "line 1, column 1: found character '\\t' that cannot start any token"),
        ("a: 1\nb: \x01\n", "line 2, column 4: the character #x0001 may not stand in YAML"),
    ],
)
def test_text_that_is_not_yaml_is_refused_in_one_line_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    # The parser's eight raw lines, with 'in "<unicode string>"', reached the user.
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(JobError) as caught:
        load_job(path)
    assert str(caught.value).startswith(f"{path} is not valid YAML: {message}")
    assert "\n" not in str(caught.value)


def test_a_data_file_in_place_of_a_job_is_called_no_job_file(tmp_path: Path) -> None:
    # It was "'utf-8' codec can't decode byte".
    path = tmp_path / "clicks.parquet"
    path.write_bytes(b"PAR1\x15\x04\xff")
    with pytest.raises(JobError, match=r"clicks\.parquet is not a job file: a job file is YAML"):
        load_job(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"", b"- 1\n", b"just words\n"])
def test_an_absent_or_foreign_file_is_refused_with_its_name(content: bytes | None, tmp_path: Path) -> None:
    # Flaw 19: a missing config file slept for two minutes, then panicked.
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError, match=r"job\.yaml"):
        load_job(path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot read the job file"):
        load_job(tmp_path)


def test_anchors_and_merged_mappings_work(tmp_path: Path) -> None:
    job = job_of(
        "tables:\n  - &base {name: user, dim: 4}\nmodel: &m {kind: mlp, hidden: [8]}\n"
        "train: {optimizer: {<<: {kind: sgd, lr: 1}, momentum: 0.5}}",
        tmp_path,
    )
    assert job.train.optimizer == SGD(lr=1.0, momentum=0.5)
