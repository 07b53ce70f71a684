from __future__ import annotations

import json
import logging
import mmap
from pathlib import Path

import numpy as np
import pytest

from satrap.observe import (
    cores_available,
    cpu_seconds,
    describe,
    log,
    log_to_stderr,
    machine,
    peak_rss_bytes,
    rss_bytes,
)
from satrap.observe.logs import _Short


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group tree, version 2, with this process in /outer/inner."""
    monkeypatch.setattr(machine, "_lines", _lines_with_group("0::/outer/inner"))
    (tmp_path / "outer/inner").mkdir(parents=True)
    return tmp_path


def _lines_with_group(line: str):  # type: ignore[no-untyped-def]
    real = machine._lines
    return lambda path: [line] if path == Path("/proc/self/cgroup") else real(path)


def test_no_limit_is_none(groups: Path) -> None:
    (groups / "outer/inner/cpu.max").write_text("max 100000\n")
    (groups / "outer/inner/memory.max").write_text("max\n")
    assert machine.cpu_quota(groups) is None
    assert machine.memory_limit_bytes(groups) is None


def test_the_tightest_limit_up_the_tree_holds(groups: Path) -> None:
    # A container often sits in a group without limits below the one that has them.
    (groups / "outer/cpu.max").write_text("150000 100000\n")
    (groups / "outer/inner/cpu.max").write_text("400000 100000\n")
    (groups / "outer/memory.max").write_text("1073741824\n")
    (groups / "outer/inner/memory.max").write_text("max\n")
    assert machine.cpu_quota(groups) == 1.5
    assert machine.memory_limit_bytes(groups) == 1 << 30


def test_limits_of_version_1_are_read(groups: Path) -> None:
    (groups / "cpu").mkdir()
    (groups / "memory").mkdir()
    (groups / "cpu/cpu.cfs_quota_us").write_text("200000\n")
    (groups / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (groups / "memory/memory.limit_in_bytes").write_text(f"{(1 << 63) - 4096}\n")
    assert machine.cpu_quota(groups) == 2
    assert machine.memory_limit_bytes(groups) is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (1.5, 2), (99.0, 8)])
def test_cores_are_the_mask_cut_by_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert cores_available() == cores


def test_memory_follows_what_is_touched() -> None:
    before = rss_bytes()
    block = mmap.mmap(-1, 1 << 27)  # not from the heap, which may have kept touched memory of other tests
    np.frombuffer(block, np.uint8)[:] = 1
    assert rss_bytes() - before > len(block) // 2
    assert peak_rss_bytes() >= rss_bytes() - (1 << 20)  # the two are counted a moment apart


def test_cpu_seconds_grow_with_work() -> None:
    before = cpu_seconds()
    sum(range(200_000))
    assert cpu_seconds() > before


def test_description_is_plain_json_with_what_figures_depend_on() -> None:
    d = describe()
    assert json.loads(json.dumps(d)) == d
    assert d["memory_bytes"] > 1 << 28
    assert d["cpu"]
    assert d["packages"]["numpy"] == np.__version__


def test_the_logger_is_quiet_until_asked(capfd: pytest.CaptureFixture[str]) -> None:
    # logging's last resort prints warnings of a library that has no handler.
    log.propagate, before = False, log.propagate
    try:
        log.warning("nobody asked")
    finally:
        log.propagate = before
    assert capfd.readouterr().err == ""


def test_asked_twice_it_prints_each_record_once(capfd: pytest.CaptureFixture[str]) -> None:
    level = log.level
    try:
        log_to_stderr(logging.INFO)
        log_to_stderr(logging.WARNING)
        log.info("below the level")
        log.warning("rows %d", 3)
    finally:
        for h in [h for h in log.handlers if isinstance(h.formatter, _Short)]:
            log.removeHandler(h)
        log.setLevel(level)
    assert capfd.readouterr().err == "satrap: warning: rows 3\n"
