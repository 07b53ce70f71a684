"""The base of every part of a job: frozen, keyword-only, and closed to unknown keys."""

from __future__ import annotations

import msgspec


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """A frozen part of a job. Two equal specs compare equal; `msgspec.structs.replace` makes a changed copy.

    Subclasses repeat `frozen=True, kw_only=True`: it holds without, but type checkers only see what stands there.
    """
