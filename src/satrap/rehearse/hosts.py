"""Machines of a cluster on this one, with a Ray node on each.

`Network`: network, process and host-name namespaces joined by a bridge. Each host has its own address, its own process
numbers and its own /tmp of Ray; what leaves it goes through a token bucket. Needs Linux and root.
`Loopback`: Ray nodes at addresses of loopback, where namespaces are not allowed.

All of it is removed when the context is left. Names of namespaces and bridges hold the number of the process that made
them, so that what a killed one has left can be found (`sweep`). Used by one thread, which must not end before the
context: the kernel ends what a thread has started with it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from satrap.errors import LaunchError
from satrap.launch.session import PRIORITY
from satrap.rehearse.processes import alive, children, kill, title
from satrap.rehearse.scaled import Spec

START_TIMEOUT_S = 240.0
"""Until a Ray node is called missing: several start at once, perhaps on few cores."""
AT_ONCE = 2
"""Ray nodes that start side by side. Each waits more than it computes, but gives itself up after half a minute."""
SPACE_TIMEOUT_S = 30.0
PORT = 6379
"""Of the head, where it has an address of its own."""
ENDS_TOO = ("setpriv", "--pdeathsig", "KILL")
"""A command that ends with the process that started it, however that ends."""
SPACES = ("unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
IMPATIENT = "timed out during startup"
"""What `ray start` says that has given itself up, as it does after half a minute of a machine that is busy."""
GUARDED = """
import os, runpy
from satrap.launch.guard import Identity, end_with
end_with(Identity.of(os.getppid()))
runpy.run_module("ray.scripts.scripts", run_name="__main__")
"""
"""`ray start` that ends with the process that started it."""


def why_not() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [tool for tool in ("ip", "tc", "unshare", "nsenter", "setpriv") if shutil.which(tool) is None]
    if missing:
        return f"there is no {' and no '.join(missing)}"
    name = f"satrap-{os.getpid()}-try"
    try:
        do("ip", "netns", "add", name)
        try:
            do("ip", "-n", name, "link", "add", "try0", "type", "veth", "peer", "name", "try1")
            do("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "try0", "root", *bucket(200))
            do("ip", "netns", "exec", name, *ENDS_TOO, *SPACES, "true")
        finally:
            do("ip", "netns", "del", name)
    except subprocess.SubprocessError as e:
        return f"network namespaces are not allowed here: {(getattr(e, 'stderr', '') or str(e)).strip()}"
    return None


def do(*command: str) -> str:
    """Runs a command of the system; returns what it printed. Raises CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=SPACE_TIMEOUT_S).stdout


def bucket(mbit: float) -> tuple[str, ...]:
    """Words of `tc` for a token bucket of so many 10^6 bits a second."""
    # A bucket must hold what may leave between two ticks of the kernel's clock.
    burst = max(256_000, int(mbit * 1e6 / 8 / 100))
    return ("tbf", "rate", f"{mbit:g}mbit", "burst", str(burst), "latency", "100ms")


def sweep() -> list[str]:
    """Removes namespaces, bridges and Ray's folders of processes that are gone; returns their names."""
    gone = []
    for name in re.findall(r"^(satrap-(\d+)-\S+)", do("ip", "netns", "list"), re.MULTILINE):
        if not alive(int(name[1])):
            gone.append(name[0])
            _quietly("ip", "netns", "del", name[0])
    for name in re.findall(r": (sb(\d+)[a-z]+)[:@]", do("ip", "-o", "link", "show", "type", "bridge")):
        if not alive(int(name[1])):
            gone.append(name[0])
            _quietly("ip", "link", "del", name[0])
    for folder in Path(tempfile.gettempdir()).glob("satrap-ray-*-*"):
        owner = folder.name.split("-")[2]
        if owner.isdigit() and not alive(int(owner)):
            gone.append(str(folder))
            shutil.rmtree(folder, ignore_errors=True)
    return gone


def _quietly(*command: str) -> None:
    with suppress(subprocess.SubprocessError):
        do(*command)


class Host(ABC):
    """One machine. What runs on it ends with it."""

    name: str
    ip: str
    prefix: tuple[str, ...]
    """Before a command, has it run on this machine."""

    @abstractmethod
    def pids(self) -> list[int]:
        """All its processes, as this machine numbers them, but those that keep it alive."""

    @abstractmethod
    def lose(self) -> None:
        """Ends it as a loss of power does, as far as that can be had here."""

    @abstractmethod
    def end(self) -> None:
        """Ends it, and with it all that runs on it. Twice does nothing."""


@dataclass(slots=True)
class Joining:
    """A machine whose Ray node is starting."""

    host: Host
    log: Path
    start: Callable[[], subprocess.Popen[bytes]]
    """Starts its Ray node."""
    ray: subprocess.Popen[bytes]
    begun: float = field(default_factory=time.monotonic)
    again: int = 2
    """Times that one which gave itself up is started anew."""

    def ready(self) -> bool:
        """Whether it belongs to the cluster by now. Raises LaunchError where it will not."""
        text = self.log.read_text()
        if "Ray runtime started" in text:
            return True
        if self.ray.poll() is not None and IMPATIENT in text and self.again > 0:
            self.again -= 1
            self.ray = self.start()
        elif self.ray.poll() is not None or time.monotonic() - self.begun > START_TIMEOUT_S:
            raise LaunchError(
                f"Ray does not start on {self.host.name} ({self.host.ip}): see {self.log}\n{text[-1500:]}"
            )
        return False

    def wait(self) -> Host:
        """The machine, once it is ready."""
        while not self.ready():
            time.sleep(0.1)
        return self.host


class Nodes(ABC):
    """Hosts with a Ray cluster on them, with a token; the first is the head. A context manager."""

    def __init__(self, folder: Path, specs: Sequence[Spec], env: dict[str, str] | None = None) -> None:
        """`folder`: for the logs of `ray start`. `env`: of the Ray nodes and of who speaks to them."""
        self._folder, self._specs, self._port = folder, specs, PORT
        self.hosts: list[Host] = []
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        self.env |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", **PRIORITY, **(env or {})}
        """For whoever speaks to the cluster. Of several machines, even where an outer Ray is one of loopback alone."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self._temp = tempfile.mkdtemp(prefix=f"satrap-ray-{os.getpid()}-")  # short: it holds Unix sockets
            stack.callback(shutil.rmtree, self._temp, ignore_errors=True)
            self._open(stack)
            first, *others = self._specs
            self.join(first).wait()
            for i in range(0, len(others), AT_ONCE):
                for joining in [self.join(spec) for spec in others[i : i + AT_ONCE]]:
                    joining.wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def address(self) -> str:
        """Of the Ray cluster."""
        return f"{self.hosts[0].ip}:{self._port}"

    def join(self, spec: Spec) -> Joining:
        """Another machine begins to join. Raises LaunchError where it cannot be made."""
        host = self._host(spec)
        self._stack.callback(host.end)
        head = not self.hosts
        self.hosts.append(host)
        words = ["start", "--block", f"--node-ip-address={host.ip}", *spec.options, "--disable-usage-stats"]
        if head:
            words += ["--head", f"--port={self._port}", "--include-dashboard=false", f"--temp-dir={self._temp}"]
        else:
            words += [f"--address={self.address}"]
        path = self._folder / f"ray-{len(self.hosts):02}-{spec.name}.log"

        def start() -> subprocess.Popen[bytes]:
            return self._start(host, words, path)

        return Joining(host, path, start, start())

    def _start(self, host: Host, words: Sequence[str], path: Path) -> subprocess.Popen[bytes]:
        with path.open("w") as log:
            ray = subprocess.Popen(
                [*host.prefix, sys.executable, "-c", GUARDED, *words],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.env},
                start_new_session=True,
            )
        self._stack.callback(ray.wait)
        self._stack.callback(host.end)
        self._stack.callback(ray.send_signal, signal.SIGCONT)  # nsenter stops itself where its child was stopped
        if isinstance(host, _Tree):
            host.process = ray
        return ray

    @abstractmethod
    def _open(self, stack: ExitStack) -> None:
        """What is there before any host is."""

    @abstractmethod
    def _host(self, spec: Spec) -> Host:
        """A new host."""


class Network(Nodes):
    """Hosts 10.77.N.1, 10.77.N.2, … in namespaces, on one bridge."""

    def _open(self, stack: ExitStack) -> None:
        self._tag = f"{os.getpid()}-{secrets.token_hex(2)}"
        self._net = next(n for n in (secrets.randbelow(250) for _ in range(1000)) if f" 10.77.{n}." not in _addresses())
        self._own = f"{os.getpid()}{_letters(3)}"  # names of interfaces are short
        self._bridge = f"sb{self._own}"
        do("ip", "link", "add", self._bridge, "type", "bridge")
        stack.callback(_quietly, "ip", "link", "del", self._bridge)
        # This machine is on it as well: `satrap top`, say, finds the metrics of all.
        do("ip", "addr", "add", f"10.77.{self._net}.254/24", "dev", self._bridge)
        do("ip", "link", "set", self._bridge, "up")

    def _host(self, spec: Spec) -> Host:
        number = len(self.hosts) + 1
        name, ip, link = f"satrap-{self._tag}-{number}", f"10.77.{self._net}.{number}", f"sv{self._own}{number}"
        do("ip", "netns", "add", name)
        self._stack.callback(_quietly, "ip", "netns", "del", name)
        do("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        do("ip", "link", "set", link, "master", self._bridge, "up")
        do("ip", "-n", name, "addr", "add", f"{ip}/24", "dev", "eth0")
        do("ip", "-n", name, "link", "set", "eth0", "up")
        do("ip", "-n", name, "link", "set", "lo", "up")
        do("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", "root", *bucket(spec.rate_mbit))
        host = _Space(spec.name, ip, name, link)
        if self.hosts:
            do(*host.prefix, "mount", "-t", "tmpfs", "none", self._temp)  # what another host has of Ray is not here
        return host

    def sent_bytes(self, host: Host) -> int:
        """What has left a host so far, as its token bucket has counted."""
        assert isinstance(host, _Space)
        text = do("ip", "netns", "exec", host.space, "tc", "-s", "qdisc", "show", "dev", "eth0")
        return int(text.split("tbf")[1].split("Sent ")[1].split()[0])


def _addresses() -> str:
    return do("ip", "-o", "-4", "addr", "show")


def _letters(n: int) -> str:
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(n))


class _Space(Host):
    """A host in namespaces of its own."""

    def __init__(self, name: str, ip: str, space: str, link: str) -> None:
        self.name, self.ip, self.space, self._link = name, ip, space, link
        first = f"echo {name} > /proc/sys/kernel/hostname; exec sleep inf"
        self._unshare = subprocess.Popen(
            ["ip", "netns", "exec", space, *ENDS_TOO, *SPACES, "sh", "-c", first],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # it cannot do without a word that its own signal mask is odd
            start_new_session=True,
        )
        deadline = time.monotonic() + SPACE_TIMEOUT_S
        while not (below := [p for p in children(self._unshare.pid) if title(p).startswith("sleep")]):
            if self._unshare.poll() is not None or time.monotonic() > deadline:
                raise LaunchError(f"the namespaces of {name} cannot be made")
            time.sleep(0.01)
        self._init = below[-1]
        self.prefix = ("nsenter", f"--target={self._init}", "--net", "--pid", "--uts", "--mount")

    def pids(self) -> list[int]:
        mine = os.readlink(f"/proc/{self._init}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") == mine:
                    found.append(int(entry.name))
        return [p for p in found if p != self._init]

    def lose(self) -> None:
        """The link first: nobody on the other hosts sees a connection closed."""
        _quietly("ip", "link", "set", self._link, "down")
        self.end()

    def end(self) -> None:
        with suppress(OSError):
            os.kill(self._init, signal.SIGKILL)
        self._unshare.wait()


class Loopback(Nodes):
    """Ray nodes at 127.0.0.1, 127.0.0.2, …: no limits of links, one space of process numbers."""

    def _open(self, stack: ExitStack) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]

    def _host(self, spec: Spec) -> Host:
        return _Tree(spec.name, f"127.0.0.{len(self.hosts) + 1}")


class _Tree(Host):
    """A Ray node and all processes below it."""

    def __init__(self, name: str, ip: str) -> None:
        self.name, self.ip, self.prefix = name, ip, ()
        self.process: subprocess.Popen[bytes] | None = None

    def pids(self) -> list[int]:
        return [] if self.process is None or self.process.poll() is not None else children(self.process.pid)

    def lose(self) -> None:
        self.end()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            # Those below first, while it is known who they are.
            kill([*self.pids(), self.process.pid])
