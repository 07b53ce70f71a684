"""Comparing with others: the goals told as they are, and no process of a peer left out, or left over."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.outside import Watched, metered
from benchmarks.peers import persia_side
from benchmarks.peers.compare import FILES, headline, lines_of
from benchmarks.peers.persia_side import Persia


def figures(speed: float, cpu: float = 10.0, auc: float = 0.79) -> dict[str, Any]:
    return {"samples_per_s": speed, "cpu_s_per_million": cpu, "test_auc": auc, "other_cores": 0.0}


def test_peer_is_taken_at_its_better_way_round_by_round() -> None:
    # Bug: one whose threads spin is fast in a quiet round and slow in a busy one; either way alone would flatter us.
    ours = [figures(100.0), figures(100.0)]
    torchrec = [figures(120.0, 30.0), figures(50.0, 30.0)]
    sleeping = [figures(80.0, 20.0), figures(80.0, 5.0)]
    found = headline(
        {
            ("satrap", "fp32"): ours,
            ("torchrec", "fp32"): torchrec,
            ("torchrec, threads sleeping", "fp32"): sleeping,
        }
    )
    assert found["fp32_speed_vs_torchrec"] == pytest.approx((100 / 120 + 100 / 80) / 2)
    assert found["fp32_cpu_vs_torchrec"] == pytest.approx((10 / 20 + 10 / 5) / 2)
    assert found["goals"]["bf16_ahead_of_torchrec"] is None


def test_faster_at_a_lower_auc_is_not_ahead() -> None:
    def ahead(auc: float) -> Any:
        rounds = {("satrap", "bf16"): [figures(200.0, auc=auc)], ("torch", "bf16"): [figures(100.0, auc=0.79)]}
        return headline(rounds)["goals"]["bf16_ahead_of_torch"]

    assert ahead(0.7896) is True
    assert ahead(0.7894) is False


def test_servers_are_held_to_persia_in_the_same_round() -> None:
    rounds = {("satrap on servers", "fp32"): [figures(1.0, 16.0)], ("persia", "fp32"): [figures(1.0, 70.0)]}
    found = headline(rounds)
    assert found["servers_cpu_vs_persia"] == pytest.approx(16 / 70)
    assert found["goals"]["servers_cpu_vs_persia_at_most_0.4"] is True


def test_lines_are_those_that_say_something(tmp_path: Path) -> None:
    code = tmp_path / "a.py"
    code.write_text(
        '"""What it is,\n\nin full."""\nimport os  # why\n\n\n# nothing\ndef f():\n    """Docs."""\n'
        '    # more\n    return os.path.join(\n        "a",\n\n        "b",\n    )\n\n\ntext = """one\n\ntwo"""\n'
    )
    # import, def, return with its two arguments and its bracket, and a text of three lines.
    assert lines_of(code) == 9
    settings = tmp_path / "a.yml"
    settings.write_text("# what\na: 1\n\nb:\n  c: 2  # why\n")
    assert lines_of(settings) == 3
    assert all(p.is_file() for files in FILES.values() for p in files)
    assert len(FILES["persia"]) == 6


def test_stretch_begins_and_ends_where_progress_is_told() -> None:
    told = iter([[0, 10], [], [20, 30], [40, 50]])
    cpu = iter([{"a": 1.0}, {"a": 3.0, "b": 0.5}])
    found = metered(Watched(lambda: next(told), lambda: next(cpu), lambda: 7.0, lambda: False), warm=15, length=20)
    assert found is not None
    assert found["cpu_by_role"] == {"a": 2.0 / 20 * 1e6, "b": 0.5 / 20 * 1e6}
    assert found["memory_mib"] == 7.0
    ended = Watched(lambda: [0], dict, lambda: 0.0, iter([False, True]).__next__)
    assert metered(ended, warm=15, length=20) is None


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(0o755)
    return path


LISTENS = """
    import os, socket, sys, time
    open(os.environ["DATA"] + "/started", "a").write(os.path.basename(sys.argv[0]) + f" {os.getpid()}\\n")
    at = sys.argv.index("-p" if "-p" in sys.argv else "--port")
    listener = socket.create_server(("127.0.0.1", int(sys.argv[at + 1])))
    time.sleep(600)
"""
TRAINS = """
    import os, sys, time
    open(os.environ["DATA"] + "/started", "a").write(f"train.py {os.getpid()}\\n")
    print("ready", flush=True)
    while "data_loader" not in open(os.environ["DATA"] + "/started").read():
        time.sleep(0.01)
    for step in range(int(os.environ["STEPS"]) + 1):
        sum(range(200_000))
        time.sleep(0.05)
        print("samples", step * int(os.environ["BATCH"]), flush=True)
    time.sleep(2)  # until it has been looked at
    END
"""
LOADS = """
    import os
    open(os.environ["DATA"] + "/started", "a").write(f"data_loader.py {os.getpid()}\\n")
"""


def installation(folder: Path, end: str) -> Persia:
    """Programs that start, listen and tell as Persia's do."""
    np.save(folder / "train_label.npy", np.zeros(105, np.int8))
    for name in ("nats-server", "persia-embedding-parameter-server", "persia-embedding-worker"):
        script(folder / name, LISTENS)
    script(folder / "train.py", TRAINS.replace("END", end))
    script(folder / "data_loader.py", LOADS)
    return Persia(sys.executable, str(folder / "nats-server"), folder, folder)


def left_over(folder: Path) -> list[str]:
    started = [line.split() for line in (folder / "started").read_text().splitlines()]
    return [name for name, pid in started if Path(f"/proc/{pid}").exists()]


def test_all_processes_of_persia_are_started_in_order_counted_and_ended(tmp_path: Path) -> None:
    persia = installation(tmp_path, 'print("test AUC 0.75", flush=True)')
    found = persia_side.run(persia, tmp_path, batch=10, steps=None, warm=20, length=50)
    assert found["test_auc"] == 0.75
    assert found["cpu_by_role"].keys() == {"nats", "servers", "embedding workers", "trainer", "loader"}
    assert found["cpu_s_per_million"] == pytest.approx(sum(found["cpu_by_role"].values()))
    assert found["memory_mib"] > 0
    assert 0 < found["first_batch_s"] < 60
    names = [line.split()[0] for line in (tmp_path / "started").read_text().splitlines()]
    assert names == [
        *("nats-server", "persia-embedding-parameter-server", "persia-embedding-worker", "train.py", "data_loader.py")
    ]
    assert left_over(tmp_path) == []


def test_persia_that_fails_is_told_with_what_it_printed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    persia = installation(tmp_path, 'sys.exit("no more memory")')
    with pytest.raises(RuntimeError, match=r"trainer ended with 1:(.|\n)*no more memory"):
        persia_side.run(persia, tmp_path, batch=10, steps=None, warm=20, length=50)
    assert left_over(tmp_path) == []


def test_why_persia_cannot_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--persia-python" in str(Persia.find(None))
    assert "No such file" in str(Persia.find(str(tmp_path / "python")))
    assert "cannot import persia" in str(Persia.find(sys.executable))
    (tmp_path / "persia").mkdir()
    (tmp_path / "persia" / "__init__.py").touch()
    python = script(tmp_path / "python", f"""
        import os, sys
        os.environ["PYTHONPATH"] = {str(tmp_path)!r}
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    """)  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(persia_side, "BESIDE_PATH", str(tmp_path))
    assert "no nats-server" in str(Persia.find(str(python)))
    script(tmp_path / "nats-server", "")
    found = Persia.find(str(python))
    assert isinstance(found, Persia)
    assert found.binaries == tmp_path / "persia"
