"""Admission to a server's socket: which public keys may connect, and as what.

libzmq asks by ZAP (RFC 27), a request over an in-process socket for every connection, before it lets a message through.
"""

from __future__ import annotations

import threading

import zmq
from zmq.utils import z85

from satrap.ps.keys import Role, ServerKeys

_ENDPOINT = "inproc://zeromq.zap.01"


class Admission:
    """Answers for every connection to sockets of one context: the role of a known key, or no.

    libzmq attaches the answer to each message of the connection as its `User-Id`; `role_of` reads it back. One thread
    from `start` to `stop`.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: ServerKeys) -> None:
        self._roles = dict(keys.roles)
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ENDPOINT)
        self._thread = threading.Thread(target=self._serve, name="satrap-admission", daemon=True)
        self.refused = 0
        """Connections refused so far."""

    def start(self) -> None:
        """Begins to answer; before the server's socket is bound."""
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        except zmq.ZMQError:
            # The context was ended: so is the server.
            self._socket.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number = (*request[:2], b"", b"")[:2]
        role = None
        if len(request) == 7 and version == b"1.0" and request[5] == b"CURVE" and len(request[6]) == 32:
            role = self._roles.get(z85.encode(request[6]).decode())
        if role is None:
            self.refused += 1
            return [b"1.0", number, b"400", b"this key has no role here", b"", b""]
        return [b"1.0", number, b"200", b"", str(int(role)).encode(), b""]

    def join(self) -> None:
        """Waits for the thread, after the context has been ended."""
        self._thread.join()


def role_of(frame: zmq.Frame) -> Role | None:
    """The role of the connection a frame came by; None where its server has no keys."""
    try:
        user = frame.get("User-Id")
    except zmq.ZMQError:
        return None
    return Role(int(user)) if user else None
