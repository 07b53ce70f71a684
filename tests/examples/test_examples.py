"""Every example runs, at a small size, and what its page shows is what is there."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import satrap as package

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 600


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that looks like the root of the repository, to be written to."""
    (tmp_path / "examples").mkdir()
    for each in EXAMPLES.iterdir():
        (tmp_path / "examples" / each.name).symlink_to(each)
    return tmp_path


def run(folder: Path, *words: str, code: int = 0) -> str:
    found = os.pathsep.join([str(Path(package.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": found, "NO_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def train(folder: Path, *words: str) -> float:
    """Trains, and returns the (mean) test AUC of the table at the end, or that of validation."""
    said = run(folder, "-m", "satrap", "train", *words, "--quiet")
    found = re.search(r"(?:test|valid) AUC +│ (\d\.\d+)", said)
    assert found is not None, said
    return float(found[1])


def movielens(folder: Path, users: int = 60, films: int = 40) -> Path:
    """The official files in small, made up: users like the films of their own kind."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    kinds = ["Action", "Drama", "Children's"]
    (folder / "users.dat").write_text(
        "".join(f"{u}::{'MF'[u % 2]}::{(1, 18, 25)[u % 3]}::{u % 21}::{10000 + u}\n" for u in range(1, users + 1))
    )
    titles = [f"Café No {m} ({1950 + m})" for m in range(1, films + 1)]
    (folder / "movies.dat").write_text(
        "".join(f"{m}::{t}::{kinds[m % 3]}|Comedy\n" for m, t in enumerate(titles, 1)), encoding="latin-1"
    )
    lines = []
    for time in range(6000):
        u, m = int(rng.integers(1, users + 1)), int(rng.integers(1, films + 1))
        likes = (u % 3 == m % 3) != (rng.random() < 0.1)
        lines.append(f"{u}::{m}::{rng.choice([4, 5]) if likes else rng.choice([1, 2, 3])}::{900000000 + time}\n")
    (folder / "ratings.dat").write_text("".join(reversed(lines)))  # the order in the file is not that of time
    return folder


def test_movielens_from_the_official_files_trains_and_ranks(home: Path) -> None:
    source = movielens(home / "ml-1m")
    said = run(home, "examples/ml-1m/prepare.py", str(source), "data/ml-1m")
    assert said.count("rows") == 3
    whole = pa.concat_tables([pq.read_table(home / f"data/ml-1m/{p}.parquet") for p in ("train", "valid", "test")])
    ratings = [line.split("::") for line in (source / "ratings.dat").read_text().splitlines()]
    assert whole.num_rows == sum(r[2] != "3" for r in ratings)
    assert sum(whole["label"].to_pylist()) == sum(r[2] in "45" for r in ratings)
    assert set(whole["release_year"].to_pylist()) <= set(range(1951, 1991))
    small = ["train.batch_size=128", "train.epochs=4", "model.hidden=[32]", "default_dim=8"]
    assert train(home, "examples/ml-1m/job.yaml", *small) > 0.8


def test_history_holds_only_what_the_user_liked_before(home: Path) -> None:
    # A history that holds the film that is asked about, or later ones, gives AUC 1 and a model that is worth nothing.
    source = movielens(home / "ml-1m", users=5, films=300)
    run(home, "examples/ml-1m/prepare.py", str(source), "data/ml-1m")
    rows = pa.concat_tables([pq.read_table(home / f"data/ml-1m/{p}.parquet") for p in ("train", "valid", "test")])
    ratings = [[int(x) for x in line.split("::")] for line in (source / "ratings.dat").read_text().splitlines()]
    liked = sorted((t, u, m) for u, m, r, t in ratings if r >= 4)
    at = {(u, m, int(r >= 4)): [] for u, m, r, t in ratings}
    for u, m, r, t in ratings:
        at[u, m, int(r >= 4)].append(t)
    for row in rows.slice(0, 300).to_pylist():
        user, history = row["user_id"], row["history"]
        times = at[user, row["movie_id"], row["label"]]
        possible = [[m for t, u, m in liked if u == user and t < time][-50:] for time in times]
        assert history in possible


def test_file_that_is_not_movielens_is_refused_by_its_line(home: Path) -> None:
    source = movielens(home / "ml-1m")
    (source / "users.dat").write_text("1::M::1\n")
    assert "users.dat, line 1: 5 fields expected, 3 found" in run(
        home, "examples/ml-1m/prepare.py", str(source), "out", code=1
    )


def test_din_learns_from_the_history(home: Path) -> None:
    run(home, "examples/ml-1m/prepare.py", str(movielens(home / "ml-1m")), "data/ml-1m")
    data = [f"data.{p}={home}/data/ml-1m/{p}.parquet" for p in ("train", "valid", "test")]
    # Without the user's own row, only the history tells what the user likes.
    folder = home / "examples" / "sequence"
    auc = train(folder, "job.yaml", *data, "train.batch_size=128", "train.epochs=6", "--run-dir", str(home / "run"))
    assert auc > 0.75


def test_original_criteo_file_becomes_parquet_without_a_value_lost(home: Path) -> None:
    lines = criteo_lines(2000)
    (home / "day_0").write_text("".join(lines))
    run(home, "examples/criteo/prepare.py", "day_0", "data/criteo/train.parquet")
    table = pq.read_table(home / "data/criteo/train.parquet")
    first = lines[0].rstrip("\n").split("\t")
    row = table.slice(0, 1).to_pylist()[0]
    back = [str(row["label"])] + ["" if row[f"I{i}"] is None else str(row[f"I{i}"]) for i in range(1, 14)]
    back += ["" if row[f"C{i}"] is None else f"{row[f'C{i}']:08x}" for i in range(1, 27)]
    assert back == first
    assert table.num_rows == 2000
    # Of 2,000 made-up rows, one column tells the label.
    small = ["model.bottom=[16]", "model.top=[16]", "default_dim=8", "train.batch_size=100", "train.epochs=4"]
    assert train(home, "examples/criteo/job.yaml", *small) > 0.8


def criteo_lines(rows: int) -> list[str]:
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(rows):
        label = int(rng.random() < 0.3)
        numbers = ["" if rng.random() < 0.2 else str(rng.integers(-2, 1000)) for _ in range(13)]
        ids = ["" if rng.random() < 0.1 else f"{rng.integers(0, 2**32):08x}" for _ in range(26)]
        ids[3] = f"{(label if rng.random() < 0.95 else 1 - label) * 0x10 + rng.integers(0, 5):08x}"
        lines.append("\t".join([str(label), *numbers, *ids]) + "\n")
    return lines


def test_own_data_example_runs_command_by_command(home: Path) -> None:
    text = (EXAMPLES / "own-data" / "README.md").read_text()
    commands = re.findall(r"^    (.*)$", text, re.MULTILINE)
    assert len(commands) == 4
    for line in commands:
        words = line.split()
        if words[0] == "python":
            run(home, *words[1:], "--rows", "3000")
        else:
            run(home, "-m", *words)
    assert (home / "runs" / "first" / "report.html").is_file()


def test_multi_task_learns_both_tasks(home: Path) -> None:
    folder = home / "examples" / "multi-task"
    auc = train(folder, "job.yaml", "train.epochs=1", "--run-dir", str(home / "run"))
    assert auc > 0.84  # the mean of both, after one epoch


@pytest.mark.parametrize("name", ["from-pytorch", "from-torchrec"])
def test_ported_model_is_as_good_as_the_page_says(home: Path, name: str) -> None:
    found = re.search(r"test AUC (\d\.\d+)", run(home, f"examples/{name}/after.py"))
    assert found is not None
    assert float(found[1]) > 0.87


def test_plain_pytorch_before_is_what_it_claims_to_be(home: Path) -> None:
    found = re.search(r"test AUC (\d\.\d+)", run(home, "examples/from-pytorch/before.py"))
    assert found is not None
    assert float(found[1]) > 0.87


@pytest.mark.skipif(find_spec("torchrec") is None, reason="TorchRec is not installed")
def test_torchrec_before_runs(home: Path) -> None:
    assert "training loss" in run(home, "examples/from-torchrec/before.py")


def clicks(folder: Path, rows: int = 16_000) -> Path:
    """What the benchmarks make, in small: a label that follows one of the ids."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    weights = rng.normal(0, 2, 50)
    for split, n in (("train", 4 * rows), ("test", rows)):
        ids = rng.integers(0, 50, (26, n))
        columns = {"label": (rng.random(n) < 1 / (1 + np.exp(-weights[ids[0]]))).astype(np.int8)}
        columns |= {f"I{i}": rng.normal(size=n).astype(np.float32) for i in range(1, 14)}
        # Half of the 64-bit ids are negative.
        columns |= {f"C{i}": (ids[i - 1] * 0x1E3779B97F4A7C15 + i).astype(np.int64) for i in range(1, 27)}
        pq.write_table(pa.table(columns), folder / f"{split}-000.parquet")
    return folder


@pytest.mark.parametrize("system", ["satrap", "pytorch", "torchrec"])
def test_clicks_are_learned_alike_in_every_system(home: Path, system: str) -> None:
    if system == "torchrec" and find_spec("torchrec") is None:
        pytest.skip("TorchRec is not installed")
    folder = clicks(home / "data")
    found = re.search(r"test AUC (\d\.\d+)", run(home, f"examples/clicks/with_{system}.py", str(folder)))
    assert found is not None
    assert float(found[1]) > 0.6


@pytest.mark.parametrize("name", ["from-pytorch", "from-torchrec"])
def test_diff_on_the_page_is_that_of_the_files(name: str) -> None:
    before, after = ((EXAMPLES / name / f).read_text().splitlines(True) for f in ("before.py", "after.py"))
    diff = "".join(difflib.unified_diff(before, after, "before.py", "after.py", n=1))
    shown = re.search(r"```diff\n(.*?)```", (EXAMPLES / name / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == diff


def test_port_from_pytorch_adds_ten_lines() -> None:
    text = (EXAMPLES / "from-pytorch" / "README.md").read_text()
    added = [x for x in text.splitlines() if x.startswith("+") and not x.startswith("+++") and x.strip("+ ")]
    assert len(added) <= 10


@pytest.mark.skipif(find_spec("nbclient") is None, reason="nbclient is not installed")
def test_notebook_runs_from_top_to_bottom(home: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "first-model.ipynb", as_version=4)
    assert all(not c.get("outputs") for c in notebook.cells), "commit it without outputs"
    where = {"metadata": {"path": str(home)}}
    NotebookClient(notebook, timeout=TIMEOUT_S, startup_timeout=TIMEOUT_S, resources=where).execute()
    text = "\n".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert re.search(r"test AUC 0\.[89]", text), text


def test_every_folder_is_in_the_list() -> None:
    listed = set(re.findall(r"\]\(([^/)]+)[/)]", (EXAMPLES / "README.md").read_text()))
    there = {p.name for p in EXAMPLES.iterdir() if p.is_dir() or p.suffix == ".ipynb"} - {"__pycache__"}
    assert {x.removesuffix("/") for x in listed} == there
