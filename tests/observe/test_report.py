"""The report of runs: what it shows, that it needs nothing else, and that nothing of a run gets into its markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from satrap.errors import TrainingError
from satrap.observe import RunLog
from satrap.observe.charts import Line, line_chart, ticks
from satrap.observe.metrics import BinaryMetrics
from satrap.observe.report import write_report

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
EVIL = "<script>alert(1)</script>&\"'"


def a_run(folder: Path, *, ended: bool = True, name: str = "clicks", epochs: int = 2, table: str = "user") -> Path:
    """A run folder as training leaves it, made by hand."""
    import numpy as np

    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.3
    metrics = BinaryMetrics()
    metrics.update(labels, rng.normal(size=400).astype(np.float32) + labels)
    with RunLog(folder, tensorboard=False) as log:
        machine = {"cpu": name, "cores": 2, "memory_bytes": 1 << 34, "packages": {"torch": "2.13"}}
        log.event("start", step=0, job=name, batch_size=100, machine=machine)
        for step in range(10, 510, 10):
            log.train(
                step=step,
                samples=step * 100,
                loss=0.7 - step / 2000,
                auc=0.5 + step / 2000,
                samples_per_s=1e4 + step,
                staleness_mean=2.5,
                rss_bytes=1 << 28,
            )
            if step % 250 == 0:
                log.evaluation("valid", metrics.result(), step)
        if ended:
            log.event("end", step=500, **an_end(table))
    (folder / "job.yaml").write_text(f"name: {json.dumps(name)}\ntrain: {{epochs: {epochs}, lr: 0.1}}\n")
    return folder


def an_end(table: str) -> dict[str, Any]:
    worker = {
        "training_s": 10.0,
        "cpu_s": 15.0,
        "stages": {"dense": 8.0, "pull": 2.0, "gradient_wait": 6.0},
        "stages_cpu": {"dense": 7.5, "pull": 1.5},
    }
    return {
        "stopped": "done",
        "samples": 50_000,
        "seconds": 12.0,
        "samples_per_s": 5000.0,
        "valid": {"auc": 0.75, "log_loss": 0.5},
        "test": {"auc": 0.7421, "log_loss": 0.51},
        "size": {"rows": 300, "bytes_per_row": 40.0},
        "gradients": {"sent": 100, "applied": 97, "duplicates": 1, "refused_not_finite": 2},
        "staleness": [5, 10, 82],
        "tables": {table: {"rows": 300, "value_bytes": 9000, "state_bytes": 1200, "overhead_bytes": 1800}},
        "hot_ids": {table: {"seen": 1000, "error": 0.001, "top": [[str(2**64 - 1), 0.2], ["7", 0.1]]}},
        "profile": {"workers": [worker], "cores": 2, "threads": 2, "samples": 50_000, "batch_size": 100},
    }


class Outline(HTMLParser):
    """Checks that elements nest, and collects what would be fetched or run."""

    VOID = ("meta", "!doctype")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(name)
        if name not in self.VOID:
            self.open.append(name)
        self.fetched += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "data") or k.startswith("on")]

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name


def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_page_of_a_run_shows_what_the_run_came_to(tmp_path: Path) -> None:
    page = write_report([a_run(tmp_path / "run")])
    assert page == tmp_path / "run" / "report.html"
    text = page.read_text()
    for expected in (
        "0.7421",  # test AUC
        "refused, not finite",
        "It balances",
        "18446744073709551615",  # an id beyond what JSON readers keep
        "The dense network computes 80 % of the time",
        "Gradients by staleness",
        "11.72 KiB",  # bytes of the table
        "lr: 0.1",  # the resolved job
    ):
        assert expected in text, expected


def test_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    # A page with a style sheet of a CDN is blank on the train, and tells the CDN who reads it.
    text = write_report([a_run(tmp_path / "run")]).read_text()
    page = outline(text)
    assert page.fetched == []
    assert "script" not in page.names
    assert "link" not in page.names
    assert "default-src 'none'" in text
    assert re.findall(r"https?://|@import|url\(", text) == []


def test_names_from_the_data_stay_text(tmp_path: Path) -> None:
    # A column called <script> must be shown, not run.
    text = write_report([a_run(tmp_path / "run", name=EVIL, table=EVIL)]).read_text()
    assert "<script>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;") >= 3
    outline(text)


def test_comparison_shows_only_the_settings_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = write_report([a_run(tmp_path / "a"), a_run(tmp_path / "b", epochs=3)])
    assert page == Path("report.html")
    differences = page.read_text().partition("Differences of the jobs")[2].partition("<h2>Curves")[0]
    assert "train.epochs" in differences
    assert "train.lr" not in differences


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / x / "run") for x in ("a", "b")]
    text = write_report(runs, tmp_path / "out.html").read_text()
    assert str(runs[0]) in text
    assert str(runs[1]) in text
    assert "None: the resolved jobs are equal." in text


def test_ledger_that_does_not_balance_is_said_so(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    log = run / "metrics.jsonl"
    log.write_text(log.read_text().replace('"applied":97', '"applied":90'))
    assert "It does not balance: 93 of 100" in write_report([run]).read_text()


def test_run_that_has_not_ended_has_a_page_of_what_there_is(tmp_path: Path) -> None:
    text = write_report([a_run(tmp_path / "run", ended=False)]).read_text()
    assert "has not ended" in text
    assert "Log loss" in text
    assert "Ledger" not in text
    outline(text)


def test_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.event("start", step=0)
    (tmp_path / "job.yaml").write_text("name: x\n")
    outline(write_report([tmp_path]).read_text())


def test_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"job\.yaml.*is it the folder of a run"):
        write_report([tmp_path])


def test_curve_of_many_points_is_thinned_and_gaps_are_left_out() -> None:
    import numpy as np

    x = np.arange(100_000.0)
    y = np.where(x % 7 == 0, np.nan, x)
    chart = line_chart("t", [Line("a", x, y, 0)], x_label="x")
    assert chart is not None
    assert len(chart) < 20_000
    assert "nan" not in chart.lower()
    assert line_chart("t", [Line("a", x[:0], x[:0], 0)], x_label="x") is None


def test_ticks_are_round_and_inside_for_any_range() -> None:
    for low, high in ((0.0, 1e-9), (0.1234, 0.1239), (-3.0, 7e6), (5.0, 5.0)):
        found = ticks(low, high)
        assert 1 <= len(found) <= 11
        assert all(low - 1e-9 * abs(high) <= t <= high * (1 + 1e-9) for t in found)


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
@pytest.mark.parametrize(("width", "height"), [(1200, 1600), (500, 1600)])
def test_real_browser_draws_the_page(tmp_path: Path, width: int, height: int) -> None:
    # Markup that only a lenient parser of ours understands, and a policy that forbids its own style sheet, show here.
    page = write_report([a_run(tmp_path / "a"), a_run(tmp_path / "b", table=EVIL)], tmp_path / "page.html")
    assert BROWSER is not None
    common = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    picture = tmp_path / "page.png"
    options = ["--enable-logging=stderr", f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run([*common, *options], capture_output=True, text=True, timeout=600, check=False)
    assert picture.is_file(), done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    assert pixels.shape[:2] == (height, width)
    colours = {tuple(p) for p in (pixels[::3, ::3].reshape(-1, 3) * 255).round().astype(int).tolist()}
    # The style sheet's blue and orange of two runs' curves, on its own background.
    assert {(35, 100, 170), (217, 105, 26), (251, 251, 250)} <= colours
