from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from satrap.errors import TrainingError
from satrap.observe import BinaryMetrics, Metrics, RunLog, plots
from satrap.observe.plots import smooth

ALL = ["loss.png", "auc.png", "throughput.png", "roc.png", "calibration.png"]


def figures(n: int = 2000, shift: float = 0.0, one_class: bool = False) -> Metrics:
    rng = np.random.default_rng(0)
    z = rng.normal(-1.0, 1.0, n).astype(np.float32)
    y = np.zeros(n) if one_class else rng.random(n) < 1 / (1 + np.exp(-z))
    m = BinaryMetrics(bins=1 << 12)
    m.update(y, z + shift)
    return m.result()


def train(run: RunLog, steps: int) -> None:
    for step in range(1, steps + 1):
        run.train(
            step=step,
            epoch=step // 6,
            loss=1 / step,
            auc=math.nan if step == 1 else 0.7,
            samples_per_s=1e5 + step,
            staleness_mean=2.5,
            staleness_max=4,
            rss_bytes=1 << 30,
        )


def names(paths: list[Path]) -> list[str]:
    for p in paths:
        data = p.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 5000  # axes and a line; an empty canvas is smaller
    return [p.name for p in paths]


def test_a_whole_run_gives_all_plots(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as run:
        run.event("start", step=0, job="adult")
        train(run, 12)
        run.evaluation("valid", figures(), 6)
        run.evaluation("valid", figures(), 12)
        run.evaluation("test", figures(), 12)
    drawn = plots(tmp_path)
    assert names(drawn) == ALL
    assert {p.parent for p in drawn} == {tmp_path / "plots"}
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == sorted(ALL)  # nothing half-written beside them


def test_several_labels_are_drawn(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as run:
        for label in ("click", "buy"):
            run.evaluation("valid", figures(shift=-4), 1, label=label)
    assert names(plots(tmp_path)) == ["loss.png", "auc.png", "roc.png", "calibration.png"]


def test_training_alone_gives_its_plots(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as run:
        train(run, 3)
    assert names(plots(tmp_path)) == ["loss.png", "auc.png", "throughput.png"]


def test_one_class_gives_calibration_and_no_roc(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as run:
        run.evaluation("valid", figures(one_class=True), 1)
    assert names(plots(tmp_path)) == ["loss.png", "calibration.png"]


def test_nothing_measured_gives_no_plots(tmp_path: Path) -> None:
    # A run stopped in its first step has a log and no figures.
    with RunLog(tmp_path, tensorboard=False) as run:
        run.event("start", step=0)
        run.evaluation("valid", BinaryMetrics().result(), 0)
    assert plots(tmp_path) == []


def test_a_single_logged_step_is_drawn(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as run:
        run.train(step=20, epoch=0, loss=0.7, auc=0.5, samples_per_s=10.0)
    assert names(plots(tmp_path)) == ["loss.png", "auc.png", "throughput.png"]


def test_drawing_again_replaces_the_plots(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as run:
        train(run, 2)
        first = plots(tmp_path)[0].read_bytes()
        train(run, 9)
    assert plots(tmp_path)[0].read_bytes() != first


def test_a_folder_that_cannot_be_written_is_a_training_error(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as run:
        train(run, 2)
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot write"):
        plots(tmp_path)


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert smooth(np.ones(100)).tolist() == [1.0] * 100
    assert smooth(np.array([5.0])).tolist() == [5.0]
    assert smooth(np.arange(100.0)) == pytest.approx(np.arange(100.0))


def test_observing_imports_no_heavy_library() -> None:
    # `satrap --help` and every worker import this room; torch alone takes seconds.
    heavy = {"torch", "matplotlib", "rich", "tensorboard"}
    code = f"import sys, satrap.observe; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
