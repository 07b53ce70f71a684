"""Bytes on disk that survive: files written so that a crash leaves the old or the new, row files, journals, snapshots.

Owns: the file layer under everything durable, and the formats docs/formats/rows.md and docs/formats/journal.md. May
import: store, wire, schema, observe, errors. Must never: know of sockets or of what a record means, trust what it has
not verified, or change a file that is complete.
"""
