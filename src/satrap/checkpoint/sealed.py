"""JSON files whose last member is the SHA-256 of all the bytes before it, so that damage to them does not pass."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

_TRAILER = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n')
TRAILER_BYTES = len(b',\n  "sha256": ""\n}\n') + 64


def seal(tree: Any) -> bytes:
    """The bytes of an object, sealed. Raises ValueError or TypeError for what JSON cannot say."""
    body = json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False).encode()
    assert body.endswith(b"\n}")
    body = body[:-2]
    return body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def unseal(data: bytes) -> tuple[bytes, bool]:
    """The JSON without its seal, and whether the seal fits; all of the data where it has none.

    >>> unseal(seal({"a": 1}))
    (b'{\\n  "a": 1\\n}', True)
    """
    trailer, body = _TRAILER.fullmatch(data[-TRAILER_BYTES:]), data[:-TRAILER_BYTES]
    if trailer is None:
        return data, False
    return body + b"\n}", hashlib.sha256(body).hexdigest().encode() == trailer.group(1)
