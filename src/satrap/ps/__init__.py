"""Parameter service: rows by id, pulled and pushed.

Owns: the `ParameterService` and `RowStorage` protocols and their implementations. May import: store, wire, schema,
observe, errors. Must never: import torch, know of batches, features or pooling, or
let anything but the messages of `satrap.wire` through a socket.
"""

from satrap.ps.exchange import Patience
from satrap.ps.keys import ClientKeys, Keys, Role, ServerKeys, load_client_keys, load_server_keys
from satrap.ps.local import LocalService
from satrap.ps.placement import Placement
from satrap.ps.protocol import (
    STALENESS_BINS,
    Ack,
    ParameterService,
    PullRequest,
    PushRequest,
    Refused,
    RowBlock,
    Rows,
    RowStorage,
    TableStats,
)
from satrap.ps.remote import Pending, RemoteService
from satrap.ps.server import Server

__all__ = [
    "STALENESS_BINS",
    "Ack",
    "ClientKeys",
    "Keys",
    "LocalService",
    "ParameterService",
    "Patience",
    "Pending",
    "Placement",
    "PullRequest",
    "PushRequest",
    "Refused",
    "RemoteService",
    "Role",
    "RowBlock",
    "RowStorage",
    "Rows",
    "Server",
    "ServerKeys",
    "TableStats",
    "load_client_keys",
    "load_server_keys",
]
