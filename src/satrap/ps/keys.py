"""Who may ask a server for what: key pairs of CurveZMQ, one a role.

A folder of keys holds one file for each holder. `server.key` goes where servers run, `worker.key` where workers run,
and so on; nobody but its user may read a file. A server knows the public key of every role and takes no connection
from any other; each holder knows the server's public key and talks to no other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import msgspec
import zmq

from satrap.errors import ServiceError


class Role(IntEnum):
    """What a holder may do; each role may also do what those below it may."""

    READER = 1
    """Pulls without making rows, and asks for sizes and metrics."""
    WORKER = 2
    """Pulls and pushes."""
    ADMIN = 3
    """Takes rows out and puts them in, clears, and stops the server."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CurveZMQ key pair, each key 40 characters of Z85."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        """A fresh pair. Raises ServiceError where libzmq was built without CurveZMQ."""
        if not zmq.has("curve"):
            raise ServiceError("this libzmq has no CurveZMQ: install the pyzmq wheel from PyPI")
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """What a server holds."""

    own: KeyPair
    roles: Mapping[str, Role]
    """Public key → role of its holder."""


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client of one role holds."""

    role: Role
    own: KeyPair
    server: str
    """The servers' public key."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A key file: JSON."""

    holder: str
    public: str
    secret: str
    server: str
    roles: dict[str, str]


@dataclass(frozen=True, slots=True)
class Keys:
    """All key pairs of one installation: what `satrap keys new` makes.

    >>> keys = Keys.new()
    >>> keys.client(Role.WORKER).server == keys.server.own.public
    True
    """

    server: ServerKeys
    clients: Mapping[Role, ClientKeys]

    @classmethod
    def new(cls) -> Keys:
        """Fresh pairs for the servers and every role."""
        own = KeyPair.new()
        clients = {role: ClientKeys(role, KeyPair.new(), own.public) for role in Role}
        return cls(ServerKeys(own, {k.own.public: role for role, k in clients.items()}), clients)

    def client(self, role: Role) -> ClientKeys:
        """What a client of this role holds."""
        return self.clients[role]

    def save(self, folder: str | Path) -> list[Path]:
        """Writes one file a holder, readable by this user alone, into a new or empty folder.

        Raises ServiceError where a key file is there already: another installation may still need it.
        """
        folder = Path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        roles = {key: role.name.lower() for key, role in self.server.roles.items()}
        files = {folder / "server.key": _File("server", *_pair(self.server.own), self.server.own.public, roles)}
        for role, keys in self.clients.items():
            name = role.name.lower()
            files[folder / f"{name}.key"] = _File(name, *_pair(keys.own), keys.server, {})
        for path in files:
            if path.exists():
                raise ServiceError(f"{path} is there already; choose another folder, or remove it if nothing uses it")
        for path, content in files.items():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        return list(files)

    @classmethod
    def load(cls, folder: str | Path) -> Keys:
        """All files of a folder that `save` wrote. Raises ServiceError as `load_server_keys` does."""
        folder = Path(folder)
        clients = {role: load_client_keys(folder / f"{role.name.lower()}.key") for role in Role}
        return cls(load_server_keys(folder / "server.key"), clients)


def load_server_keys(path: str | Path) -> ServerKeys:
    """Reads `server.key`. Raises ServiceError for a file that is missing, damaged, of another holder, or that others
    may read."""
    content = _read(Path(path))
    if content.holder != "server":
        raise ServiceError(f"{path} holds the keys of a {content.holder}; a server needs server.key")
    return ServerKeys(KeyPair(content.public, content.secret), {k: Role[r.upper()] for k, r in content.roles.items()})


def load_client_keys(path: str | Path) -> ClientKeys:
    """Reads the key file of a role. Raises ServiceError as `load_server_keys` does."""
    content = _read(Path(path))
    if content.holder == "server":
        raise ServiceError(f"{path} holds the keys of a server; a client needs that of its role, such as worker.key")
    return ClientKeys(Role[content.holder.upper()], KeyPair(content.public, content.secret), content.server)


def _pair(keys: KeyPair) -> tuple[str, str]:
    return keys.public, keys.secret


def _read(path: Path) -> _File:
    try:
        mode = path.stat().st_mode
        content = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as e:
        raise ServiceError(f"{path}: cannot be read: {e.strerror}; `satrap keys new FOLDER` makes keys") from e
    except (msgspec.ValidationError, msgspec.DecodeError) as e:
        raise ServiceError(f"{path} is not a key file: {e}; `satrap keys new FOLDER` makes keys") from e
    if mode & 0o077:
        raise ServiceError(f"{path} may be read by other users (mode {mode & 0o777:o}); run: chmod 600 {path}")
    known = {"server", *(r.name.lower() for r in Role)}
    keys = [content.public, content.secret, content.server, *content.roles]
    if content.holder not in known or not known >= set(content.roles.values()) or any(len(k) != 40 for k in keys):
        raise ServiceError(f"{path} is not a key file: a holder, role or key in it is none")
    return content
