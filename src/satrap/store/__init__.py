"""The store: rows by 64-bit id, in native memory.

Owns: the only door to the native core. Arrays in, arrays out; every call is one batch, releases the GIL and uses a
set number of threads. May import: schema, observe, errors. Must never: import torch, know of sockets or files.
"""

from satrap.store.checksum import crc32c
from satrap.store.formats import DTYPES, StoredValues, columns, converter, state_words
from satrap.store.memory import keep_freed_memory
from satrap.store.store import (
    MISSING,
    NOT_ADMITTED,
    NOT_FINITE,
    SEAL_WORDS,
    ColdCounts,
    Store,
    Ticket,
    TicketFeature,
    blank_bound,
    bound_partition,
    mixed,
    rows_of,
)
from satrap.store.wire import decode_rows, encode_fitted, encode_rows, fp16_scale, gather, route, scatter

__all__ = [
    "DTYPES",
    "MISSING",
    "NOT_ADMITTED",
    "NOT_FINITE",
    "SEAL_WORDS",
    "ColdCounts",
    "Store",
    "StoredValues",
    "Ticket",
    "TicketFeature",
    "blank_bound",
    "bound_partition",
    "columns",
    "converter",
    "crc32c",
    "decode_rows",
    "encode_fitted",
    "encode_rows",
    "fp16_scale",
    "gather",
    "keep_freed_memory",
    "mixed",
    "route",
    "rows_of",
    "scatter",
    "state_words",
]
