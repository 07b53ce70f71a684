"""Metrics of one process over HTTP, as Prometheus reads them; and the list of a run's processes in its folder.

    curl http://127.0.0.1:43211/metrics

The list is a file of targets as Prometheus knows them (`file_sd_configs`), so a Prometheus on the same machine needs
nothing but its path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from satrap.errors import ServiceError, TrainingError

TARGETS_FILE = "metrics-targets.json"
"""In the run folder."""
PORTS = 64
"""Of one machine, from the one that is asked for."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Part = Callable[[], str]
"""Some of a process's metrics in the text format of Prometheus. Asked for at every request, in a thread of its own."""


class Endpoint:
    """Serves the metrics of this process in a thread of its own, until `close`. Nothing runs between requests.

    Beside the parts given it tells this process's memory, processor time and open files, as `process_…`.

    >>> from urllib.request import urlopen
    >>> with Endpoint(lambda: "satrap_rows 3") as endpoint:
    ...     text = urlopen(f"http://{endpoint.address}/metrics").read().decode()
    >>> "satrap_rows 3" in text, "process_cpu_seconds_total" in text
    (True, True)
    """

    def __init__(self, *parts: Part, host: str = "127.0.0.1", port: int = 0) -> None:
        """Binds and serves. `port` 0: a free one; else the first free one of `PORTS` from it on, since the processes of
        a machine are told the same. Raises ServiceError where it cannot listen there."""
        self._parts = (*parts, _process_part())
        self._http = self._bound(host, port)
        self._http.daemon_threads = True
        bound = self._http.server_address
        self.address = f"{host}:{bound[1]}"
        """host:port"""
        self._thread = threading.Thread(target=self._http.serve_forever, name="satrap-metrics", daemon=True)
        self._thread.start()

    def _bound(self, host: str, port: int) -> ThreadingHTTPServer:
        last = port if port == 0 else port + PORTS - 1
        for p in range(port, last + 1):
            try:
                return ThreadingHTTPServer((host, p), _handler(self._text))
            except OSError as e:
                if p == last or e.errno != errno.EADDRINUSE:
                    raise ServiceError(f"metrics cannot be served at {host}, port {p}: {e.strerror}") from e
        raise AssertionError("the last port returns or raises")

    def _text(self) -> str:
        return "\n".join(part().rstrip("\n") for part in self._parts) + "\n"

    def close(self) -> None:
        """Stops serving. Closing twice does nothing."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _handler(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "satrap"
        sys_version = ""
        timeout = 10

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "the metrics are at /metrics")
                return
            body = text().encode()
            with contextlib.suppress(ConnectionError):  # who asked has gone
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """A request for metrics is nothing to tell a person."""

    return Handler


def _process_part() -> Part:
    from prometheus_client import CollectorRegistry, ProcessCollector

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry_part(registry)


def registry_part(registry: Any) -> Part:
    """The metrics of a `prometheus_client.CollectorRegistry`."""
    from prometheus_client import generate_latest

    return lambda: generate_latest(registry).decode()


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a run, and where its metrics are."""

    role: str
    """server | worker | embedding worker"""
    index: int
    """Its number among those of its role."""
    address: str
    """host:port of its `Endpoint`."""
    host: str
    """Name of its machine."""
    pid: int

    @property
    def name(self) -> str:
        """`server 0`"""
        return f"{self.role} {self.index}"


class _Group(msgspec.Struct):
    """One entry of a Prometheus target file."""

    targets: list[str]
    labels: dict[str, str]


def write_targets(run_dir: str | Path, targets: Sequence[Target]) -> Path:
    """Puts the list of a run's processes into its folder, whole and at once; an empty one says that none runs.

    Raises TrainingError where the folder cannot be written.
    """
    run_dir = Path(run_dir)
    path = run_dir / TARGETS_FILE
    groups = [
        _Group(
            [t.address],
            {"run": run_dir.name, "role": t.role, "index": str(t.index), "host": t.host, "pid": str(t.pid)},
        )
        for t in targets
    ]
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.format(msgspec.json.encode(groups), indent=2) + b"\n")
        new.replace(path)
    except OSError as e:
        raise TrainingError(f"cannot write {path}: {e.strerror}; give a folder you may write to") from e
    return path


def read_targets(run_dir: str | Path) -> list[Target]:
    """The processes of a run; none where it runs in one process, or runs no more.

    Raises TrainingError for a file that is damaged.
    """
    path = Path(run_dir) / TARGETS_FILE
    try:
        groups = msgspec.json.decode(path.read_bytes(), type=list[_Group])
        return [
            Target(
                role=g.labels["role"],
                index=int(g.labels["index"]),
                address=g.targets[0],
                host=g.labels["host"],
                pid=int(g.labels["pid"]),
            )
            for g in groups
        ]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise TrainingError(f"cannot read {path}: {e.strerror}") from e
    except (msgspec.DecodeError, KeyError, IndexError, ValueError) as e:
        raise TrainingError(f"{path} is not a list of a run's processes: {e}") from e
