"""An object store in memory that does what a bad day does to one: answers 503, is full, is slow, dies at any request.

It is an fsspec file system: `ObjectFiles(FaultyObjects())` is what checkpoints see, and with
`checkpoint.use_filesystem("faulty://bucket", …)` a job can name it. As with real ones, an object is there whole once
its put has ended, and what was sent of one that never ended is nowhere.
"""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Callable
from typing import Any

import fsspec

from satrap.testing.faulty_files import Killed


class FaultyObjects(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Counts requests; the `kill_at`-th that changes something dies, and `fail` may raise for any. Thread-safe."""

    protocol = "faulty"
    cachable = False

    def __init__(
        self,
        objects: dict[str, bytes] | None = None,
        kill_at: int | None = None,
        late: bool = False,
        fail: Callable[[str, str, int], None] | None = None,
        **options: Any,
    ) -> None:
        """`objects`: name without scheme → bytes; shared with whoever gave it. `late`: the request at which the process
        dies is done, and nobody hears of it. `fail(request, name, count)`."""
        super().__init__(**options)
        self.objects = {} if objects is None else objects
        self.kill_at, self.late, self.fail = kill_at, late, fail
        self.count, self.requests = 0, 0
        self.log: list[str] = []
        self._dead = False
        self._lock = threading.Lock()

    def step(self, request: str, name: str, change: Callable[[], object] | None = None) -> None:
        """Every request passes here: counted, perhaps refused, then done."""
        with self._lock:
            if self._dead:
                raise Killed
            self.requests += 1
            requests = self.requests
            if change is not None:
                self.count += 1
                self.log.append(f"{request} {name}")
                if self.count == self.kill_at:
                    self._dead = True
                    if self.late:
                        change()
                    raise Killed
        if self.fail is not None:
            self.fail(request, name, requests)
        if change is not None:
            change()

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path).strip("/")
        self.step("list", path)
        found: dict[str, dict[str, Any]] = {}
        for name, data in list(self.objects.items()):
            if name == path:
                found[name] = {"name": name, "size": len(data), "type": "file"}
            elif name.startswith(path + "/"):
                first, slash, _rest = name[len(path) + 1 :].partition("/")
                child = f"{path}/{first}"
                size = 0 if slash else len(data)
                found[child] = {"name": child, "size": size, "type": "directory" if slash else "file"}
        if not found:
            raise FileNotFoundError(path)
        return [found[n] if detail else n for n in sorted(found)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path).strip("/")
        self.step("head", path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.objects[path]), "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path).strip("/")
        self.step("get", path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path).strip("/")
        self.step("put", path, lambda: self.objects.update({path: bytes(value)}))

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path).strip("/")
        self.step("delete", path, lambda: self.objects.pop(path, None))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        path = self._strip_protocol(path).strip("/")
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))
        self.step("begin", path, lambda: None)
        return _Upload(self, path)


class _Upload:
    """An object sent in parts: there once it is closed."""

    def __init__(self, store: FaultyObjects, name: str) -> None:
        self._store, self._name, self._data = store, name, bytearray()

    def write(self, data: Any) -> int:
        self._store.step("part", self._name, lambda: self._data.extend(data))
        return len(data)

    def close(self) -> None:
        self._store.step("put", self._name, lambda: self._store.objects.update({self._name: bytes(self._data)}))

    def discard(self) -> None:
        self._data = bytearray()


class Busy:
    """Refuses each request the first `times` it is made, whoever else asks for what meanwhile."""

    def __init__(self, times: int) -> None:
        self._times, self._lock = times, threading.Lock()
        self._left: dict[tuple[str, str], int] = {}

    def __call__(self, request: str, name: str, count: int) -> None:
        """As `fail` of `FaultyObjects`. Raises OSError."""
        if self.refuses(request, name, count):
            raise unavailable(request, name)

    def refuses(self, request: str, name: str, count: int) -> bool:
        """Whether this time it is refused; after `times` it is granted, and then begins anew."""
        with self._lock:
            left = self._left.get((request, name), self._times)
            self._left[request, name] = self._times if left == 0 else left - 1
            return left > 0


def unavailable(request: str, name: str) -> OSError:
    """What an object store that is busy answers."""
    return OSError(errno.EIO, f"503 Slow Down: {request}", name)
