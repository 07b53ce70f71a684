from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from satrap.errors import TrainingError
from satrap.observe import BinaryMetrics, RunLog, read_metrics
from satrap.observe.events import EventFile, masked_crc32c
from satrap.observe.files import append, cut_partial_line


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def some_metrics() -> BinaryMetrics:
    m = BinaryMetrics()
    m.update([0, 1, 0, 1], [0.0, 1.0, 0.5, 0.25])
    return m


def test_each_record_is_one_line_with_kind_and_time_as_soon_as_it_is_given(tmp_path: Path) -> None:
    run = RunLog(tmp_path)
    run.event("start", step=0, machine={"cores": 2})
    run.train(step=20, epoch=0, loss=0.5, rows=np.int64(7), staleness=np.zeros(2))
    # Not closed: what is logged is there for whoever follows the file, and after a kill.
    start, train = lines(tmp_path)
    assert (start["kind"], start["machine"]) == ("start", {"cores": 2})
    assert (train["kind"], train["step"], train["rows"], train["staleness"]) == ("train", 20, 7, [0, 0])
    assert isinstance(train["time"], float)
    run.close()
    run.close()


def test_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    # NaN is not JSON: a strict reader of the file would refuse the whole line.
    with RunLog(tmp_path) as run:
        run.train(step=1, auc=math.nan, loss=np.float32("inf"))
    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda _: pytest.fail("not JSON"))
    assert (record["auc"], record["loss"]) == (None, None)


def test_evaluation_holds_every_figure_of_metrics(tmp_path: Path) -> None:
    result = some_metrics().result()
    with RunLog(tmp_path) as run:
        run.evaluation("valid", result, 5)
        run.evaluation("test", result, 6, label="buy", checkpoint=Path("step-6"))
    valid, test = lines(tmp_path)
    assert {k: v for k, v in valid.items() if k != "time"} == {
        "kind": "eval",
        "split": "valid",
        "step": 5,
        **json.loads(json.dumps(result.to_dict())),
    }
    assert (test["split"], test["label"], test["step"], test["checkpoint"]) == ("test", "buy", 6, "step-6")


def test_a_field_that_json_cannot_hold_is_refused_and_the_log_stays_whole(tmp_path: Path) -> None:
    with RunLog(tmp_path) as run:
        with pytest.raises(NotImplementedError, match="cannot hold object"):
            run.train(step=1, loss=object())
        run.train(step=2)
    assert [r["step"] for r in lines(tmp_path)] == [2]


@pytest.mark.parametrize("left", ["", '{"kind": "tra', "x" * 200_000])
def test_reopening_cuts_the_half_line_of_a_killed_run(tmp_path: Path, left: str) -> None:
    with RunLog(tmp_path) as run:
        run.train(step=1)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write(left)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    with RunLog(tmp_path) as run:
        run.train(step=2)
    assert [r["step"] for r in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("text", ["", "half", "whole\n", "whole\nhalf"])
def test_cut_leaves_whole_lines_only(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a"
    path.write_text(text)
    assert cut_partial_line(path) == len(text) - (text.rfind("\n") + 1)
    assert path.read_text() == text[: text.rfind("\n") + 1]


def test_resume_takes_back_what_the_log_says_of_later_steps(tmp_path: Path) -> None:
    # A run killed at step 40 resumes from its checkpoint at 20: steps 21 to 40 happen twice.
    with RunLog(tmp_path) as run:
        run.event("start", step=0)
        for step in (10, 20, 30, 40):
            run.train(step=step, loss=1.0)
        run.event("end", step=40)
    with RunLog(tmp_path) as run:
        run.event("start", step=20)
        run.train(step=30, loss=2.0)
    kept = [(r["kind"], r["step"], r.get("loss")) for r in read_metrics(tmp_path)]
    assert kept == [("start", 0, None), ("train", 10, 1), ("train", 20, 1), ("start", 20, None), ("train", 30, 2)]
    assert len(lines(tmp_path)) == 8


def test_reading_names_the_line_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "start"}\nnonsense\n')
    with pytest.raises(TrainingError, match=r"metrics.jsonl, line 2: not a JSON object"):
        read_metrics(tmp_path)


def test_reading_a_folder_without_a_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is it the folder of a run"):
        read_metrics(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_training_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        RunLog(tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_a_training_error_that_names_the_file() -> None:
    with open("/dev/full", "ab", buffering=0) as f, pytest.raises(TrainingError, match=r"/dev/full: No space left"):
        append(f, Path("/dev/full"), b"record")


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "events"))
    events.Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_curves_of_training_and_evaluation(tmp_path: Path) -> None:
    with RunLog(tmp_path) as run:
        run.event("start", step=0)
        run.train(step=20, epoch=0, loss=0.5, auc=math.nan, samples_per_s=1e5)
        run.train(step=300, epoch=1, loss=0.25, auc=0.75, samples_per_s=2e5)
        run.evaluation("valid", some_metrics().result(), 300)
        run.evaluation("test", some_metrics().result(), 300, label="buy")
    read = curves(tmp_path)
    assert read["train/loss"] == [(20, 0.5), (300, 0.25)]
    assert read["train/auc"] == [(300, 0.75)]
    assert read["valid/auc"] == [(300, 0.75)]
    assert read["test/buy/samples"] == [(300, 4)]
    assert not {"train/step", "train/time", "train/kind"} & read.keys()


def test_tensorboard_hides_the_steps_that_a_resume_took_back(tmp_path: Path) -> None:
    with RunLog(tmp_path) as run:
        for step in (10, 20, 30):
            run.train(step=step, loss=1.0)
    with RunLog(tmp_path) as run:
        run.event("start", step=20)
        run.train(step=30, loss=2.0)
    assert curves(tmp_path)["train/loss"] == [(10, 1), (20, 1), (30, 2)]


def test_event_records_carry_checksums_that_tensorflow_accepts(tmp_path: Path) -> None:
    # TensorBoard's pure reader checks the payload's; a wrong one ends the file there, silently.
    record_reader = pytest.importorskip("tensorboard.compat.tensorflow_stub.pywrap_tensorflow")
    for data in (b"", b"\x00" * 32, bytes(range(256))):
        assert masked_crc32c(data) == record_reader.masked_crc32c(data)
    events = EventFile(tmp_path)
    events.scalars({"a": 1.0, "b": -2.5}, 1 << 40)
    events.close()
    payloads = list(_payloads(events.path.read_bytes()))
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    first, second = (event_pb2.Event.FromString(p) for p in payloads)
    assert first.file_version == "brain.Event:2"
    assert second.step == 1 << 40
    assert [(v.tag, v.simple_value) for v in second.summary.value] == [("a", 1.0), ("b", -2.5)]


def _payloads(data: bytes) -> list[bytes]:
    out = []
    while data:
        size = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        out.append(data[12 : 12 + size])
        assert int.from_bytes(data[12 + size : 16 + size], "little") == masked_crc32c(out[-1])
        data = data[16 + size :]
    return out


def test_two_logs_of_one_second_write_two_event_files(tmp_path: Path) -> None:
    # TensorBoard stops reading a file when a newer one begins; two writers in one would tear records.
    for step in (1, 2):
        with RunLog(tmp_path) as run:
            run.train(step=step, loss=1.0)
    assert len(list((tmp_path / "events").iterdir())) == 2


def test_events_can_be_left_out(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as run:
        run.train(step=1, loss=1.0)
    assert not (tmp_path / "events").exists()
