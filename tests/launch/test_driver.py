"""What the driver makes of what happens to processes, and what it shows; with processes that are none."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from satrap.launch import driver as module
from satrap.launch.display import Display
from satrap.launch.driver import Driver
from satrap.launch.fleet import Fleet, Member
from satrap.launch.guard import Identity
from satrap.launch.placing import Node, place
from satrap.launch.told import Begun, Told
from satrap.train.interrupt import Interrupts

NODE = Node(id="a", ip="127.0.0.1", cpus=4)
SERVER = 'satrap_rows{table="t"} 1234\nsatrap_sent_bytes_total %d\n'


def member(role: str, index: int) -> Member:
    begun = Begun(host="here", identity=Identity("here", 40 + index, 1), metrics="127.0.0.1:1")
    return Member(role, index, NODE, None, begun, heard_at=time.monotonic())


def driver(display: Any) -> Driver:
    return Driver(None, Path("runs/x"), display, Interrupts(), 3, False, False, 0.0)  # type: ignore[arg-type]


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_silent_process_is_named_once_and_once_more_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    said, server = Said(), member("server", 1)
    d, now = driver(said), time.monotonic()
    for later, heard in ((4.0, 0.0), (6.0, 0.0), (9.0, 0.0), (10.0, 10.0), (11.0, 11.0)):
        monkeypatch.setattr(module.time, "monotonic", lambda later=later: now + later)
        server.heard_at = now + heard
        d._name_silent([server])
    assert said.lines == [
        "server 1 (pid 41) has not answered for 5 s: the others wait for it",
        "server 1 (pid 41) answers again",
    ]


def test_a_process_that_ray_has_lost_sight_of_and_that_runs_is_watched_again() -> None:
    ray = pytest.importorskip("ray")

    class Actor:
        def __init__(self) -> None:
            self.watch, self.asked = self, 0

        def remote(self) -> str:
            self.asked += 1
            return f"watch {self.asked}"

    def told(error: BaseException, identity: Identity) -> tuple[bool, Any]:
        def get(promise: Any) -> None:
            raise error

        fleet = object.__new__(Fleet)
        fleet.session = SimpleNamespace(ray=SimpleNamespace(get=get, exceptions=ray.exceptions))  # type: ignore[assignment]
        begun = Begun(host="here", identity=identity, metrics="127.0.0.1:1")
        m = Member("server", 1, NODE, Actor(), begun, watch="watch 0")
        return fleet.watched_anew(m), m.watch

    unavailable = ray.exceptions.ActorUnavailableError("lost", b"0" * 16)
    here = Identity.of()
    assert told(unavailable, here) == (True, "watch 1")
    assert told(unavailable, replace(here, started=here.started - 1)) == (False, "watch 0")  # it has ended
    assert told(unavailable, replace(here, machine="another")) == (True, "watch 1")
    assert told(ray.exceptions.ActorDiedError(), here) == (False, "watch 0")


def test_progress_shows_servers_and_workers(capsys: pytest.CaptureFixture[str]) -> None:
    members = [member("server", 0), member("server", 1), member("worker", 0)]
    told = Told(text="", display={"total_samples": 100, "epochs": 1}, figures={"step": 3, "samples": 50})
    with Display(True) as display:
        for sent in (0, 1 << 20):
            for m in members[:2]:
                m.last = SERVER % sent
            display.update(members, told)
            time.sleep(0.01)
    err = capsys.readouterr().err
    assert "step 3" in err
    assert "2 servers" in err
    assert "MiB/s out, 1 worker" in err or "GiB/s out, 1 worker" in err


def test_servers_go_where_memory_is_and_workers_where_gpus_are_whatever_the_order_of_nodes() -> None:
    gpus = [Node(id=f"g{i}", ip=f"10.0.0.{i}", cpus=8, gpus=2) for i in range(2)]
    memory = [
        Node(id=f"m{i}", ip=f"10.0.1.{i}", cpus=8, for_servers=True, memory_bytes=1e9 * (1 + i)) for i in range(2)
    ]
    places = place([*gpus, *memory], servers=3, workers=4)
    assert place([*memory[::-1], *gpus[::-1]], servers=3, workers=4) == places
    assert [n.id for n in places.servers] == ["m0", "m1", "m1"]
    assert [n.id for n in places.workers] == ["g0", "g0", "g1", "g1"]
    assert not places.one_machine
