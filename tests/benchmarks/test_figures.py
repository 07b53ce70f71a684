"""Pictures of stored benchmark output: each says what it is of, and none is older than its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks.figures import FOLDER, PANELS, Curves, Panel, digest, draw, figure_of, main

MACHINE = {"commit": "0123456789ab", "date": "2026-01-02", "cpu": "A", "cores": 2, "memory_gib": 24.0, "torch": "2.13"}
OUTPUTS: dict[str, list[dict]] = {
    "train": [{"median_of": 2, "group": "sum", "side": "satrap", "samples_per_s": 5e5, "cpu_s_per_million": 3.0}],
    "train on servers": [{"median_of": 2, "group": "deep", "way": "1 server", "samples_per_s": 9e4}],
    "wire": [
        {
            "case": {"operation": "pull", "rows": 100000, "dim": 16, "wire": "fp32"},
            "satrap_vs_echo": 0.64,
            "bound_vs_echo": 0.7,
        }
    ],
    "store": [
        {
            "case": {"dim": 16, "format": "fp32", "threads": 1},
            "lookup": {"satrap_vs_raw": 0.2},
            "update": {"satrap_hinted_vs_raw": 0.4},
        }
    ],
    "pooling": [{"case": {"values": 1, "wire": "fp32", "way": "pooled"}, "bytes_per_sample": 3000.0}],
    "peers": [
        {
            "median_of": 2,
            "side": "satrap on servers",
            "system": "satrap",
            "precision": "fp32",
            "samples_per_s": 1e5,
            "cpu_s_per_million": 14.0,
            "memory_mib": 900.0,
            "first_batch_s": 5.0,
            "lines": 14,
        }
    ],
    "capacity": [
        {
            "filled": n,
            "fill_mrows_per_s": 5.0,
            "lookup_mrows_per_s": {"satrap": 20.0, "raw": 60.0},
            "update_mrows_per_s": {"satrap": 15.0, "raw": 50.0},
            "lookup_vs_raw": 0.33,
        }
        for n in (10**6, 10**7)
    ]
    + [{"filled_cold": 10**7, "memory": 0.2}, {"trained": 10**7, "samples_per_s": 2e5}],
    "plan": [
        {
            "servers": 1,
            "predicted": {
                "samples_per_s": 1e5,
                "worker_cpu_s_per_million": 13.0,
                "servers_cpu_s_per_million": 2.0,
            },
        },
        {
            "median_of": 3,
            "servers": 1,
            "samples_per_s": 1.1e5,
            "worker_cpu_s_per_million": 12.0,
            "servers_cpu_s_per_million": 2.1,
        },
    ],
    "modes": [
        {
            "case": {"data": "ml-1m", "seed": s, "staleness": k, "dense_mode": "sync", "workers": 1, "batch": None},
            "test_auc": 0.89 + 0.001 * s - 0.0001 * k,
        }
        for s in (0, 1, 2)
        for k in (0, 8)
    ],
}


def stored(folder: Path, name: str) -> Path:
    path = folder / f"{name.replace(' ', '-')}.jsonl"
    lines = [{"benchmark": name, "rounds": 2, "machine": MACHINE}, *OUTPUTS[name]]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


@pytest.mark.parametrize("name", sorted(PANELS))
def test_every_benchmark_has_a_picture_that_says_what_it_is_of(tmp_path: Path, name: str) -> None:
    path = stored(tmp_path, name)
    text = draw(path).read_text()
    for expected in (f"benchmarks {name}", "rounds 2", "0123456789ab", "2026-01-02", digest(path)):
        assert expected in text, expected


@pytest.mark.parametrize("name", ["train", "capacity"])
def test_same_lines_give_the_same_picture(tmp_path: Path, name: str) -> None:
    # Otherwise every run of the command changes every file, and nobody sees which figure has changed.
    path = stored(tmp_path, name)
    first = draw(path).read_bytes()
    keep = [bytearray(1000) for _ in range(1000)]  # so that the second one lies elsewhere in memory
    assert draw(path).read_bytes() == first
    assert keep


def test_paired_differences_are_those_of_the_same_seed(tmp_path: Path) -> None:
    # Between seeds the AUC differs ten times as much as between modes: unpaired, the interval would cover everything.
    panel = next(p for p in PANELS["modes"](OUTPUTS["modes"]) if isinstance(p, Panel))
    (bar,) = panel.bars
    assert bar.value == pytest.approx(-0.0008)
    assert bar.half == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"median_of": 2}\n', "first line does not say"),
        ('{"benchmark": "train", "machine": {"commit": "a"}}\nmaking data…\n', "line 2 is not JSON"),
        ('{"benchmark": "train", "machine": {"commit": "a"}}\n', "stopped before its end"),
        ('{"benchmark": "tea", "machine": {"commit": "a"}}\n', "no picture of 'tea'"),
    ],
)
def test_file_that_is_no_output_is_named_with_the_reason(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    assert main(["--folder", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda p: p.stem)
def test_nothing_is_cut_off_at_the_edges(path: Path) -> None:
    # A long title and a long line of commits once ran out of the picture at its right.
    figure = figure_of(path)
    figure.draw_without_rendering()
    needed = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert needed.x0 >= 0
    assert needed.y0 >= 0
    assert needed.x1 <= width
    assert needed.y1 <= height


def test_point_far_from_the_others_does_not_squeeze_them(tmp_path: Path) -> None:
    path = stored(tmp_path, "peers")
    sides = [
        {**OUTPUTS["peers"][0], "side": f"side {i}", "test_auc": auc}
        for i, auc in enumerate((0.7791, 0.7792, 0.7788, 0.72))
    ]
    lines = [{"benchmark": "peers", "machine": MACHINE}, *sides]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert re.findall(r"([\d.]+), off this axis", draw(path).read_text()) == ["0.7200"]


def test_pictures_of_the_performance_page_are_of_the_stored_outputs() -> None:
    for path in FOLDER.glob("*.jsonl"):
        picture = path.with_suffix(".svg")
        assert picture.is_file(), f"python -m benchmarks figures draws {picture.name}"
        assert digest(path) in picture.read_text(), f"{picture.name} is older than {path.name}: benchmarks figures"
    page = (FOLDER.parent / "performance.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\(figures/([\w.-]+)\)", page))
    assert shown
    assert shown <= {p.with_suffix(".svg").name for p in FOLDER.glob("*.jsonl")}, "a picture nobody can draw again"


def test_stored_runs_are_those_that_the_stored_output_tells() -> None:
    # Otherwise a study that went on would leave its picture behind.
    for path in FOLDER.glob("*.runs"):
        output = path.with_suffix(".jsonl")
        if output.is_file():
            told = [x["test_auc"] for x in map(json.loads, output.read_text().splitlines()) if "case" in x]
            kept = [json.loads(x)["test_auc"] for x in path.read_text().splitlines()]
            assert sorted(told) == pytest.approx(sorted(kept), abs=1e-4), path.name


def test_curves_of_a_study_are_means_over_its_seeds_with_the_commits_of_its_runs(tmp_path: Path) -> None:
    cases = [
        {
            "case": {"data": "synthetic", "seed": s, "staleness": 8, "dense_mode": "sync", "workers": 1, "batch": 512},
            "test_auc": 0.7,
            "progressive": [[512, 0.5 + s], [1024, 0.6 + s]],
            "commit": f"abcdef{s}",
        }
        for s in (0, 1)
    ]
    curves = next(
        p for p in PANELS["modes"]([{"benchmark": "modes", "bayes_auc": 0.8}, *cases]) if isinstance(p, Curves)
    )
    assert curves.lines == {"hybrid 8": [(512 / 1e6, 1.0), (1024 / 1e6, 1.1)]}
    path = tmp_path / "study.jsonl"
    lines = [{"benchmark": "modes", "machine": MACHINE, "bayes_auc": 0.8}, *cases]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = draw(path).read_text()
    assert "runs of abcdef0, abcdef1" in text
    assert "AUC of samples not yet seen" in text
