"""Why a server and a client do not become one connection: what CurveZMQ says of its handshakes.

libzmq hides them: to the client a refused connection looks like a server that is not there. Its monitor tells.
"""

from __future__ import annotations

from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

TRIES = 3
"""Handshakes that fail without a reason, one after the other, until the keys are called wrong: a server that is killed
fails one too. Where one has succeeded the keys are right, and whoever is stopped or gone fails any number."""


class Handshakes:
    """Listens to the handshakes of one client socket. Used by the thread that uses the socket."""

    def __init__(self, socket: Any, keys: bool) -> None:
        """`keys`: whether the socket has keys, which says what a failure without a reason means."""
        self._socket = socket
        self._keys = keys
        wanted = (
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self.monitor: Any = socket.get_monitor_socket(wanted)
        """To be polled; then `refusal` has something to read."""
        self._failed = 0
        self._succeeded = False

    def refusal(self) -> str | None:
        """Why there will never be a connection; None where nothing speaks against one."""
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "it does not know this client's key: both need their files from one folder of `satrap keys new`"
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                return "one of the two has keys and the other has none: give both the same folder (--keys)"
            self._succeeded |= event == zmq.EVENT_HANDSHAKE_SUCCEEDED
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
