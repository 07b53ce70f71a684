"""Parameter service: rows by id, pulled and pushed.

Owns: the `ParameterService` and `RowStorage` protocols and their implementations. May import: durable, store, wire,
schema, observe, errors. Must never: import torch, know of batches, features or pooling, or let anything but the
messages of `satrap.wire` through a socket.
"""

from satrap.ps.exchange import Patience
from satrap.ps.keeper import Keeping, forget_history
from satrap.ps.keys import ClientKeys, Keys, Role, ServerKeys, load_client_keys, load_server_keys
from satrap.ps.local import LocalService
from satrap.ps.moving import Mover
from satrap.ps.placement import Placement
from satrap.ps.protocol import (
    STALENESS_BINS,
    Ack,
    Cut,
    Cuttable,
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
    "Cut",
    "Cuttable",
    "Keeping",
    "Keys",
    "LocalService",
    "Mover",
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
    "forget_history",
    "load_client_keys",
    "load_server_keys",
]
