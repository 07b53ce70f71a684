"""What becomes of the connection to a server: why there is none, as CurveZMQ says of its handshakes, and since when.

libzmq hides it: to the client a refused connection looks like a server that is not there. Its monitor tells.
"""

from __future__ import annotations

import time
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

TRIES = 3
"""Handshakes that fail without a reason, one after the other, until the keys are called wrong: a server that is killed
fails one too. Where one has succeeded the keys are right, and whoever is stopped or gone fails any number."""


class Handshakes:
    """Listens to what becomes of the connection of one client socket. Used by the thread that uses the socket."""

    def __init__(self, socket: Any, keys: bool) -> None:
        """`keys`: whether the socket has keys, which says what a failure without a reason means."""
        self._socket = socket
        self._keys = keys
        wanted = (
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_DISCONNECTED
        )
        self.monitor: Any = socket.get_monitor_socket(wanted)
        """To be polled; then `refusal` has something to read."""
        self._failed = 0
        self._succeeded = False
        self.down_since: float | None = None
        """When a connection that was there ended, in seconds of the monotonic clock; None: it is there, or never was.
        Heartbeats end that of a process that is stopped or cut off. They are answered beside all that it does: who is
        only busy keeps it."""

    def refusal(self) -> str | None:
        """Takes in what has happened. Returns why there will never be a connection; None where nothing speaks against
        one."""
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)["event"]
            if event == zmq.EVENT_DISCONNECTED:
                if self._succeeded and self.down_since is None:
                    self.down_since = time.monotonic()
                continue
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "it does not know this client's key: both need their files from one folder of `satrap keys new`"
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                return "one of the two has keys and the other has none: give both the same folder (--keys)"
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._succeeded, self.down_since = True, None
            self._failed = 0 if self._succeeded else self._failed + 1
            # The other end may hang up before its greeting is read here, so that two ends of which one has no keys can
            # look like this as well.
            if self._failed == TRIES:
                if not self._keys:
                    return "one of the two has keys and the other has none: give both the same folder (--keys)"
                return (
                    "it has another key than this client knows, or none: both need their files from one folder (--keys)"
                )
        return None

    def close(self) -> None:
        """Before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(0)
