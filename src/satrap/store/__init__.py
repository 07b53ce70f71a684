"""The store: rows by 64-bit id, in native memory.

Owns: the only door to the native core. Arrays in, arrays out; every call is one batch, releases the GIL and uses a
set number of threads. May import: schema, observe, errors. Must never: import torch, know of sockets or files.
"""

from satrap.store.memory import keep_freed_memory
from satrap.store.store import MISSING, NOT_FINITE, Store, Ticket, TicketFeature
from satrap.store.wire import decode_rows, encode_rows, fp16_scale, gather, route, scatter

__all__ = [
    "MISSING",
    "NOT_FINITE",
    "Store",
    "Ticket",
    "TicketFeature",
    "decode_rows",
    "encode_rows",
    "fp16_scale",
    "gather",
    "keep_freed_memory",
    "route",
    "scatter",
]
