"""Processes that end with those they work for, and processes that are ended for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from satrap.launch.guard import Identity
from satrap.rehearse.processes import alive

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

FOLLOWS = "import sys, time; from satrap.launch.guard import *; end_with(Identity.of(int(sys.argv[1]))); "
FOLLOWS += "print('follows', flush=True); time.sleep(60)"


@pytest.fixture
def other() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


def test_a_process_ends_with_the_one_it_works_for(other: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen([sys.executable, "-c", FOLLOWS, str(other.pid)], stdout=subprocess.PIPE) as follower:
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"follows\n"
            assert follower.poll() is None
            other.kill()
            assert follower.wait(60) == 1
        finally:
            other.kill()
            other.wait()
            follower.kill()


def test_a_stopped_process_is_ended_and_waited_for(other: subprocess.Popen[bytes]) -> None:
    os.kill(other.pid, signal.SIGSTOP)
    Identity.of(other.pid).kill(timeout_s=60)
    assert not alive(other.pid)
    assert other.wait() == -signal.SIGKILL


def test_a_later_process_of_the_same_number_is_neither_taken_for_it_nor_killed(other: subprocess.Popen[bytes]) -> None:
    before = replace(Identity.of(other.pid), started=Identity.of(other.pid).started - 1)
    assert not before.alive
    before.kill(timeout_s=1)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_process_of_another_machine_or_container_is_not_here() -> None:
    assert Identity.of().here
    assert not replace(Identity.of(), machine="another").here


def test_a_process_that_nobody_has_asked_about_has_ended(other: subprocess.Popen[bytes]) -> None:
    # A zombie: it would be waited for until its parent asks.
    identity = Identity.of(other.pid)
    other.kill()
    deadline = time.monotonic() + 60
    while identity.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.path.exists(f"/proc/{other.pid}")
    other.wait()
