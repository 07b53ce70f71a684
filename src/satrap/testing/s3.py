"""An S3 server in this process, as much of it as checkpoints and data need: objects in memory, path-style addresses.

    GET ?list-type=2 | GET (ranges) | HEAD | PUT | DELETE | multipart: POST ?uploads, PUT ?partNumber, POST ?uploadId

Signatures are not checked. `busy` has it answer 503 to some requests, as S3 does when it is asked too often.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_NS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class S3:
    """A server on loopback; in a `with`, `endpoint` is its address and `objects` what is in it, by `bucket/key`."""

    def __init__(self, *buckets: str, busy: Callable[[str, str, int], bool] | None = None) -> None:
        """`busy(method, name, count)`: whether a request is answered with 503."""
        self.objects: dict[str, bytes] = {}
        self.buckets, self.busy = set(buckets), busy
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.uploads: dict[str, dict[int, bytes]] = {}
        handler = type("Handler", (_Handler,), {"s3": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> S3:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    s3: S3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _begin(self) -> tuple[str, dict[str, str], bytes] | None:
        """The name, the query and the body; None where the answer has been given."""
        url = urlsplit(self.path)
        name = unquote(url.path)[1:]  # a slash at its end is part of a key
        name = name.rstrip("/") if name.count("/") == 1 and name.endswith("/") else name
        query = {k: v[-1] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        body = self._body()
        with self.s3.lock:
            self.s3.requests.append(f"{self.command} {name}")
            count = len(self.s3.requests)
        if self.s3.busy is not None and self.s3.busy(self.command, name, count):
            self._answer(503, self._error("SlowDown", "Please reduce your request rate."))
            return None
        return name, query, body

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return _unchunked(data) if "aws-chunked" in self.headers.get("Content-Encoding", "") else data

    def do_HEAD(self) -> None:
        if (begun := self._begin()) is None:
            return
        name, _, _ = begun
        data = self.s3.objects.get(name)
        if data is None and name not in self.s3.buckets:
            self._answer(404, b"")
            return
        self._answer(200, data or b"", {"ETag": _tag(data or b""), "Last-Modified": _DATE}, body=False)

    def do_GET(self) -> None:
        if (begun := self._begin()) is None:
            return
        name, query, _ = begun
        if "/" not in name and "list-type" in query:
            self._list(name, query)
            return
        data = self.s3.objects.get(name)
        if data is None:
            self._answer(404, self._error("NoSuchKey", name))
            return
        head = {"ETag": _tag(data), "Last-Modified": _DATE}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, data, head)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        self._answer(206, data[start : end + 1], {**head, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def do_PUT(self) -> None:
        if (begun := self._begin()) is None:
            return
        name, query, body = begun
        if "uploadId" in query:
            self.s3.uploads[query["uploadId"]][int(query["partNumber"])] = body
        elif "/" in name:
            self.s3.objects[name] = body
        else:
            self.s3.buckets.add(name)
        self._answer(200, b"", {"ETag": _tag(body)})

    def do_POST(self) -> None:
        if (begun := self._begin()) is None:
            return
        name, query, body = begun
        bucket, _, key = name.partition("/")
        if "uploads" in query:
            upload = f"upload-{len(self.s3.uploads)}"
            self.s3.uploads[upload] = {}
            self._xml("InitiateMultipartUploadResult", f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
                      f"<UploadId>{upload}</UploadId>")  # fmt: skip
        elif "uploadId" in query:
            parts = self.s3.uploads[query["uploadId"]]  # kept: a client that heard nothing asks again
            wanted = [int(n) for n in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
            data = b"".join(parts[n] for n in wanted)
            self.s3.objects[name] = data
            self._xml("CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key><ETag>{escape(_tag(data))}</ETag>")
        else:  # ?delete
            for encoded in re.findall(rb"<Key>(.*?)</Key>", body):
                self.s3.objects.pop(f"{name}/{encoded.decode()}", None)
            self._xml("DeleteResult", "")

    def do_DELETE(self) -> None:
        if (begun := self._begin()) is None:
            return
        name, query, _ = begun
        if "uploadId" in query:
            self.s3.uploads[query["uploadId"]].clear()
        else:
            self.s3.objects.pop(name, None)
        self._answer(204, b"")

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, slash = query.get("prefix", ""), query.get("delimiter", "")
        keys = sorted(n.partition("/")[2] for n in self.s3.objects if n.startswith(f"{bucket}/{prefix}"))
        files = [k for k in keys if not slash or slash not in k[len(prefix) :]]
        below = sorted({prefix + k[len(prefix) :].partition(slash)[0] + slash for k in keys if k not in files})
        most = int(query.get("max-keys", 1000))
        shown = files[:most]
        self._xml(
            "ListBucketResult",
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(shown) + len(below)}</KeyCount>"
            f"<MaxKeys>{most}</MaxKeys><IsTruncated>false</IsTruncated>"
            + "".join(
                f"<Contents><Key>{escape(k)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{escape(_tag(self.s3.objects[f'{bucket}/{k}']))}</ETag>"
                f"<Size>{len(self.s3.objects[f'{bucket}/{k}'])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for k in shown
            )
            + "".join(f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in below),
        )

    def _error(self, code: str, message: str) -> bytes:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        return text.encode()

    def _xml(self, tag: str, inside: str) -> None:
        text = f"<?xml version='1.0' encoding='UTF-8'?><{tag} {_NS}>{inside}</{tag}>"
        self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)


_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _unchunked(data: bytes) -> bytes:
    """A body with a checksum behind it, as newer clients send it."""
    out, at = b"", 0
    while True:
        line = data.index(b"\r\n", at)
        size = int(data[at:line].split(b";")[0], 16)
        if size == 0:
            return out
        out += data[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
