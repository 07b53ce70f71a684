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
from satrap.launch.placing import MEMORY, Node

OBJECT_STORE_BYTES = 80 << 20
"""About the least that Ray takes. Nothing of a model passes through it."""
REACH_S = 5.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""A private Ray tells nobody of itself, and warns of nothing that does not concern a run."""


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
                )
            )
        return nodes


@contextlib.contextmanager
def session(address: str | None, processes: int, *, debug: bool = False) -> Iterator[Session]:
    """Connects to the cluster at `address`, or starts a private Ray for so many processes; ends what it started.

    To be entered in the main thread: a private Ray ends with the thread that started it.
    Raises LaunchError where Ray is not installed, does not start, or is not at the address.
    """
    begun = time.monotonic()
    if address is not None:
        _look_for(address)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as e:
        raise LaunchError(
            "servers and workers in processes of their own are started by Ray, which is not installed: "
            "pip install 'satrap[ray]'"
        ) from e
    if ray.is_initialized():
        raise LaunchError("this process is connected to Ray already: call ray.shutdown() first, or use another process")
    level = logging.WARNING if debug else logging.CRITICAL
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": level, "configure_logging": True}
    logging.getLogger("ray").setLevel(level)
    info: Any
    try:
        info = _private(ray, processes, options) if address is None else ray.init(address=address, **options)
    except Exception as e:
        where = f"no Ray cluster answers at {address}" if address is not None else "Ray did not start on this machine"
        raise LaunchError(f"{where}: {_first_line(e)}") from e
    folder = info.address_info.get("session_dir") if address is None else None
    try:
        yield Session(ray, address is None, time.monotonic() - begun)
    finally:
        ray.shutdown()
        if folder is not None and not debug:
            shutil.rmtree(folder, ignore_errors=True)


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
    return ray.init(
        # "local": not the cluster that an environment variable may name.
        address="local",
        num_cpus=processes,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        **options,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
