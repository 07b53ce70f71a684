"""`satrap top`, looking at servers in this process."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_command import Satrap
from rich.console import Console

from satrap.observe.endpoint import Endpoint, Target, write_targets
from satrap.observe.processes import SERVER_FIGURES, table
from satrap.observe.runlog import RunLog
from satrap.observe.scrape import Scrape
from satrap.ps import Placement, PullRequest, PushRequest, RemoteService, Server
from satrap.schema import SGD, Table

TABLE = Table(name="t", dim=2, optimizer=SGD(lr=1.0))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run with one server that is busy, and one that does not answer. An interval lasts until the
    server has been asked again, however busy the machine is."""
    folder = tmp_path / "run"
    with Server([TABLE], seed=0, partitions=8, threads=1) as server, Endpoint(server.metrics) as endpoint:
        targets = [
            Target(role="server", index=0, address=endpoint.address, host="here", pid=7),
            Target(role="server", index=1, address="127.0.0.1:9", host="there", pid=8),
            Target(role="embedding worker", index=0, address="127.0.0.1:9", host="there", pid=9),
        ]
        write_targets(folder, targets)
        (folder / "job.yaml").touch()
        with RunLog(folder, tensorboard=False) as log:
            log.train(step=20, samples=2000, loss=0.25, auc=0.75, samples_per_s=1234.0)
        begun, over = threading.Event(), threading.Event()
        rounds: list[int] = []
        busy = threading.Thread(target=_ask, args=(server.address, begun, over, rounds))
        busy.start()
        assert begun.wait(60)

        def interval(seconds: float) -> None:
            done = len(rounds)
            while len(rounds) < done + 2:
                time.sleep(0.01)

        monkeypatch.setattr("satrap.cli.top.time", SimpleNamespace(sleep=interval))
        yield folder
        over.set()
        busy.join()


def _ask(address: str, begun: threading.Event, over: threading.Event, rounds: list[int]) -> None:
    ids = {"t": np.arange(100, dtype=np.uint64)}
    with RemoteService([TABLE], Placement.even([address], 8), seed=0) as client:
        seq = 0
        while not over.wait(0.01):
            seq += 1
            client.pull(PullRequest(ids=ids, create=True))
            ones = {"t": np.ones((100, 2), np.float32)}
            client.push(PushRequest(client=0, epoch=0, seq=seq, ids=ids, gradients=ones))
            rounds.append(seq)
            begun.set()


def test_top_once_prints_rates_of_each_process_and_who_does_not_answer(called: Satrap, run: Path) -> None:
    out = called("top", run, "--once").out
    assert "run: 2 servers, 1 embedding worker, 0 workers; 2 of them do not answer from here" in out
    assert "step 20" in out
    assert "AUC" in out.upper()
    lines = [line.split() for line in out.splitlines()]
    assert next(x for x in lines if x[1:2] == ["here:7"])[2] == "100"  # rows
    assert next(x for x in lines if x[1:2] == ["there:8"])[2:] == ["does", "not", "answer"]


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_no_figure_is_cut_off_on_a_narrow_terminal(width: int) -> None:
    said = Scrape.of('satrap_rows{table="t"} 123456789\nsatrap_table_bytes{table="t"} 1e9')
    drawing = Console(width=width, file=io.StringIO(), highlight=False)
    drawing.print(table("server", SERVER_FIGURES, [("0  here:7", said, None), ("1  there:8", None, None)]))
    assert isinstance(drawing.file, io.StringIO)
    out = drawing.file.getvalue()
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    assert all(title in out for title in SERVER_FIGURES)
    assert "123,456,789" in out
    assert "does not answer" in out
    # Each part begins with the names of the processes.
    assert out.count("here:7") == out.count("server ") == out.count("there:8")
    assert (out.count("here:7") == 1) == (width == 400)


def test_top_as_json_has_the_figures_of_each_process(called: Satrap, run: Path) -> None:
    told = json.loads(called("top", run, "--json").out)
    server = told["processes"]["server 0"]
    assert server["rows"] == "100"
    assert float(server["gradients/s"].replace(",", "")) > 0
    assert server["pull ms"] != "-"
    assert told["processes"]["server 1"] == {}
    assert told["last"]["step"] == 20


def test_top_of_a_run_that_has_ended_says_so(called: Satrap, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_targets(folder, [])
    (folder / "job.yaml").touch()
    with RunLog(folder, tensorboard=False) as log:
        log.event("end", step=40, stopped="done")
    assert "run: ended" in called("top", folder, "--once").out


def test_top_without_once_ends_by_itself_when_the_run_has_ended(called: Satrap, tmp_path: Path) -> None:
    write_targets(tmp_path / "run", [])
    (tmp_path / "run" / "job.yaml").touch()
    called("top", tmp_path / "run", "--interval", "0.2")


def test_top_of_a_folder_that_is_no_run_is_one_message(called: Satrap, tmp_path: Path) -> None:
    outcome = called("top", tmp_path / "nothing", code=1)
    assert "there is no such run folder" in outcome.err
