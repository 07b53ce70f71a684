from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from satrap.observe import BinaryMetrics, Progress, summary_table
from satrap.observe.progress import duration, figure, size


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


FIGURES = {
    "samples_per_s": 123456.7,
    "loss": 0.51234,
    "auc": 0.75,
    "staleness": 3.5,
    "rows": 12_345,
    "rss_bytes": 3 << 29,
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    return Terminal()


def test_lines_show_every_figure_without_control_codes() -> None:
    out = io.StringIO()
    with Progress(total_samples=100, epochs=3, file=out) as p:
        p.update(step=7, epoch=1, samples=50, **FIGURES)
    line = out.getvalue()
    assert line.startswith("50%  epoch 2/3  step 7  samples/s 123,457  loss 0.5123  AUC 0.7500  staleness 3.50")
    assert "rows 12,345  memory 1.50 GiB" in line
    assert "\x1b" not in line


def test_lines_come_no_oftener_than_the_interval_and_the_last_state_always_comes() -> None:
    # One line a step would be most of a log that a batch system keeps.
    out = io.StringIO()
    with Progress(interval_s=1000, file=out) as p:
        for step in range(1, 100):
            p.update(step=step)
    assert [x.split()[1] for x in out.getvalue().splitlines()] == ["1", "99"]


def test_every_update_is_a_line_without_an_interval() -> None:
    out = io.StringIO()
    with Progress(interval_s=0, file=out) as p:
        for step in range(3):
            p.update(step=step)
    assert len(out.getvalue().splitlines()) == 3


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_silent_means_not_one_character(stream: type[io.StringIO]) -> None:
    out = stream()
    with Progress(show=False, file=out) as p:
        p.update(step=1, **FIGURES)
        p.say("hello")
        p.evaluation("valid", BinaryMetrics().result(), 1)
    assert out.getvalue() == ""


def test_figures_not_given_again_keep_their_value() -> None:
    out = io.StringIO()
    with Progress(interval_s=0, file=out) as p:
        p.update(step=1, loss=0.5)
        p.update(step=2)
    assert out.getvalue().splitlines()[1] == "step 2  loss 0.5000"


def test_what_is_not_a_number_is_a_dash() -> None:
    out = io.StringIO()
    with Progress(file=out) as p:
        p.update(step=1, auc=float("nan"), loss=None)
    assert out.getvalue().strip() == "step 1  loss -  AUC -"


def test_evaluation_is_one_line_with_its_split() -> None:
    m = BinaryMetrics()
    m.update([0, 1, 0, 1], [0.0, 1.0, 0.5, 0.25])
    out = io.StringIO()
    with Progress(file=out) as p:
        p.evaluation("valid", m.result(), 1200)
    assert re.fullmatch(r"valid at step 1,200:  AUC 0\.7500  log loss .*\(4 samples\)\n", out.getvalue())


def test_terminal_shows_bar_and_figures_and_gives_the_cursor_back(terminal: Terminal) -> None:
    with Progress(total_samples=100, epochs=2, file=terminal, title="adult") as p:
        p.update(step=7, epoch=1, samples=50, **FIGURES)
        p.say("[not markup] saved")
    text = terminal.getvalue()
    for part in ("adult  epoch 2/2", "50%", "50 of 100 samples", "123,457", "0.7500", "1.50 GiB", "[not markup] saved"):
        assert part in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_terminal_says_what_training_waits_for_as_long_as_it_waits(terminal: Terminal) -> None:
    # An evaluation of minutes looked like a display that had stopped.
    with Progress(total_samples=10, file=terminal) as p:
        p.update(step=1, samples=5)
        console = Console(width=140, record=True, file=io.StringIO())
        p.doing("evaluating")
        console.print(p._draw())
        p.doing(None)
        console.print(p._draw())
    first, second = [line for line in console.export_text().splitlines() if line.startswith("training")]
    assert first.startswith("training  evaluating 0:0")
    assert "evaluating" not in second


def test_ctrl_c_gives_the_terminal_back_and_passes_on(terminal: Terminal) -> None:
    # A hidden cursor after Ctrl-C outlives the program.
    def interrupted() -> None:
        with Progress(file=terminal) as p:
            p.update(step=1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = terminal.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with Progress(file=out) as p:
        p.update(step=1)
    assert out.getvalue() == "step 1\n"


def test_terminal_with_no_figures_yet_and_unknown_total_draws(terminal: Terminal) -> None:
    with Progress(file=terminal) as p:
        p.update(samples=10)
    assert "10 samples" in terminal.getvalue()


def test_time_left_of_a_resumed_run_counts_its_own_samples_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # Counting the samples before the resume promised an end that was much too near.
    now = [0.0]
    monkeypatch.setattr("satrap.observe.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(total_samples=1000, interval_s=0, file=out) as p:
        p.update(samples=800)
        now[0] = 10.0
        p.update(samples=810)
    assert out.getvalue().splitlines()[1] == "81%  left 3:10"


def test_a_run_that_ends_early_does_not_end_in_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("satrap.observe.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(total_samples=1000, interval_s=100, file=out) as p:
        p.update(samples=10)
        now[0] = 10.0
        p.update(samples=500)
    assert out.getvalue().splitlines()[-1] == "50%"


def test_figures_by_kind() -> None:
    assert figure("staleness", 3.456) == "3.46"
    assert figure("step", 1_000_000) == "1,000,000"
    assert size(999 << 20) == "999 MiB"
    assert size(5 << 40) == "5.00 TiB"
    assert (duration(59.6), duration(3600)) == ("1:00", "1h00")


def test_summary_folds_long_paths_whole() -> None:
    # A path cut with an ellipsis cannot be copied.
    from rich.console import Console

    path = "runs/" + "x" * 100
    out = io.StringIO()
    Console(file=out, width=60).print(summary_table({"test AUC": "0.9021", "rows": 12345, "run": path}, title="done"))
    text = out.getvalue()
    assert "12,345" in text
    assert text.count("x") == 100
    assert "…" not in text
