"""Ray: a private one on this machine for one run, or a cluster that is there already."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from satrap.errors import LaunchError
from satrap.launch.janitor import janitor
from satrap.launch.placing import MEMORY, POOLING, Node

OBJECT_STORE_BYTES = 80 << 20
"""About the least that Ray takes. Nothing of a model passes through it."""
REACH_S = 5.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
"""Ray tells nobody of itself, warns of nothing that does not concern a run, and does not print the death of processes,
which the driver tells in its own words. Read when Ray is first imported."""
PRIORITY = {"RAY_worker_niceness": "0"}
"""Servers and workers run at the priority of the command. Ray by itself puts them behind everything else (nice 15)."""
LOOPBACK_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""A private Ray is reached from this machine alone, as Ray has it by itself on Windows and macOS."""


@dataclass(frozen=True, slots=True)
class Session:
    """A Ray that is connected to."""

    ray: Any
    """The module, so that Ray is imported only where it is used."""
    private: bool
    """On this machine, for this run alone."""
    start_s: float
    """Time it took to start it or to connect to it."""

    def nodes(self) -> list[Node]:
        """The machines that are alive."""
        nodes = []
        for n in self.ray.nodes():
            if not n["Alive"]:
                continue
            has, labels = n["Resources"], n.get("Labels") or {}
            nodes.append(
                Node(
                    id=n["NodeID"],
                    ip=n["NodeManagerAddress"],
                    cpus=has.get("CPU", 0.0),
                    gpus=has.get("GPU", 0.0),
                    memory_bytes=has.get("memory", 0.0),
                    for_servers=MEMORY in has or MEMORY in labels,
                    for_pooling=POOLING in has or POOLING in labels,
                )
            )
        return nodes


@contextlib.contextmanager
def session(address: str | None, processes: int, *, debug: bool = False) -> Iterator[Session]:
    """Connects to the cluster at `address`, or starts a private Ray for so many processes; ends what it started. A Ray
    that this process is connected to already is used, and stays.

    To be entered in the main thread: a private Ray ends with the thread that started it.
    Raises LaunchError where Ray is not installed, does not start, or is not at the address.
    """
    begun = time.monotonic()
    if address is not None:
        _look_for(address)
    for name, value in {**PRIORITY, **({} if debug else QUIET), **(LOOPBACK_ALONE if address is None else {})}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as e:
        raise LaunchError(
            "servers and workers in processes of their own are started by Ray, which is not installed: "
            "pip install 'satrap[ray]'"
        ) from e
    if ray.is_initialized():
        if address is not None:
            raise LaunchError(
                f"this process is connected to Ray already, and {address} may be another: give no address to use that "
                "one, or call ray.shutdown() first"
            )
        yield Session(ray, False, 0.0)
        return
    level = logging.WARNING if debug else logging.CRITICAL
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": level, "configure_logging": True}
    logging.getLogger("ray").setLevel(level)
    info: Any
    with janitor() if address is None else contextlib.nullcontext():
        try:
            info = _private(ray, processes, options) if address is None else ray.init(address=address, **options)
        except Exception as e:
            where = "Ray did not start on this machine" if address is None else f"no Ray cluster answers at {address}"
            raise LaunchError(f"{where}: {_first_line(e)}{_TOKEN if _needs_token(address) else ''}") from e
        folder = info.address_info.get("session_dir") if address is None else None
        try:
            yield Session(ray, address is None, time.monotonic() - begun)
        finally:
            ray.shutdown()
            if folder is not None and not debug:
                shutil.rmtree(folder, ignore_errors=True)


_TOKEN = (
    "; if its nodes were started with token authentication, set RAY_AUTH_MODE=token here too, and RAY_AUTH_TOKEN where "
    "~/.ray/auth_token is not theirs"
)


def _needs_token(address: str | None) -> bool:
    """Whether Ray would have kept its token to itself: to an address that is spelled out it sends none unasked."""
    return address not in (None, "auto") and "RAY_AUTH_MODE" not in os.environ


def _look_for(address: str) -> None:
    """Raises LaunchError where nobody listens: Ray itself would try for minutes."""
    host, sep, port = address.rpartition(":")
    if not sep or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as e:
        raise LaunchError(
            f"no Ray cluster answers at {address}: {e}; its address is that which `ray start --head` printed"
        ) from e


def _private(ray: Any, processes: int, options: dict[str, Any]) -> Any:
    with _no_dashboard():
        return ray.init(
            # "local": not the cluster that an environment variable may name.
            address="local",
            num_cpus=processes,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **options,
        )


@contextlib.contextmanager
def _no_dashboard() -> Iterator[None]:
    """Ray without its dashboard process. `include_dashboard=False` starts it all the same, to report usage, which is
    off here, and waits for it: a third of the time that Ray takes to start."""
    try:
        from ray._private import node

        kind: Any = node.Node
        start = kind.start_api_server
    except (ImportError, AttributeError):  # another version of Ray: it starts what it likes
        yield
        return
    kind.start_api_server = lambda *_, **__: None
    try:
        yield
    finally:
        kind.start_api_server = start


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
