"""Who may reach a server, and what each role may ask of it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployments import exact, outcome, pull, push_of, u64

from satrap.errors import ServiceError
from satrap.ps import (
    ClientKeys,
    Keys,
    Placement,
    PullRequest,
    RemoteService,
    Role,
    RowBlock,
    Server,
    load_client_keys,
    load_server_keys,
)
from satrap.ps.handling import RIGHTS
from satrap.testing import Cluster
from satrap.wire import messages, moving

KEYS = Keys.new()
IDS = u64(1, 2, 3)

CALLS: dict[str, tuple[Role, Callable[[Any], Any]]] = {
    "pull that makes no rows": (Role.READER, lambda s: pull(s, "t", IDS)),
    "stats": (Role.READER, lambda s: s.stats()),
    "metrics": (Role.READER, lambda s: s.server_metrics()),
    "pull that makes rows": (Role.WORKER, lambda s: pull(s, "t", IDS, create=True)),
    "push": (Role.WORKER, lambda s: s.push(push_of(1, IDS, 1))),
    "clients": (Role.WORKER, lambda s: s.clients()),
    "export": (Role.ADMIN, lambda s: s.export_rows("t", 0)),
    "reserve": (Role.ADMIN, lambda s: s.reserve_rows("t", 10)),
    "import": (
        Role.ADMIN,
        lambda s: s.import_rows("t", RowBlock(IDS, np.zeros((3, 2), np.float32), np.zeros((3, 0), np.float32))),
    ),
    "erase": (Role.ADMIN, lambda s: s.erase("t", IDS)),
    "clear": (Role.ADMIN, lambda s: s.clear()),
    "set clients": (Role.ADMIN, lambda s: s.set_clients({0: (0, 9)})),
    "stop": (Role.ADMIN, lambda s: s.stop_servers()),
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("what", CALLS)
def test_each_role_may_do_its_part_and_no_more(what: str, role: Role) -> None:
    needed, call = CALLS[what]
    with Cluster([exact()], keys=KEYS.server) as cluster:
        client = cluster.connect(keys=KEYS.client(role))
        before = cluster.servers[0].service.clients()
        if role >= needed:
            call(client)
            return
        with pytest.raises(ServiceError, match=f"needs the role {needed.name.lower()}, this key has the role"):
            call(client)
        assert cluster.servers[0].service.stats()["t"].rows == 0
        assert cluster.servers[0].service.clients() == before


def test_every_message_is_a_request_with_a_right_or_an_answer_without() -> None:
    # A new kind of request must not be open to everyone because somebody forgot to say who may send it.
    answers = {
        "Welcome", "RowsReply", "AckReply", "Gap", "Held", "Failure", "Done", "TablesReply", "StatsReply",
        "BlockReply", "ClientsReply", "MetricsReply", "Moved", "OwnedReply", "Touched",
    }  # fmt: skip
    every = {
        c.__name__
        for c in (*vars(messages).values(), *vars(moving).values())
        if isinstance(c, type) and issubclass(c, messages.Message) and c is not messages.Message
    }
    assert {c.__name__ for c in RIGHTS} == every - answers


def test_a_server_takes_no_connection_without_a_key_it_knows() -> None:
    # A flaw of an early system: nothing on the network was authenticated.
    strangers = Keys.new()
    other = ClientKeys(Role.ADMIN, strangers.client(Role.ADMIN).own, KEYS.server.own.public)
    with Cluster([exact()], keys=KEYS.server) as cluster:
        for keys, why in ((None, "one of the two has keys"), (other, "does not know this client's key")):
            with pytest.raises(ServiceError, match=why):
                cluster.connect(keys=keys).clear()
        assert cluster.servers[0].service.stats()["t"].rows == 0


def test_a_client_talks_to_no_server_but_the_one_it_has_the_key_of() -> None:
    with (
        Cluster([exact()], keys=Keys.new().server) as cluster,
        pytest.raises(ServiceError, match="has another key than this client knows"),
    ):
        cluster.connect(keys=KEYS.client(Role.ADMIN)).stats()


def test_a_client_with_keys_says_so_of_a_server_that_has_none() -> None:
    # It used to look like a server that is not there, half a minute later. Which of the two sentences it is depends on
    # who hangs up first.
    why = "one of the two has keys|another key than this client knows, or none"
    with Cluster([exact()]) as cluster, pytest.raises(ServiceError, match=why):
        cluster.connect(keys=KEYS.client(Role.ADMIN)).stats()


def test_training_with_keys_gives_the_rows_of_training_without() -> None:
    seen = []
    for server, client in ((None, None), (KEYS.server, KEYS.client(Role.WORKER))):
        with Cluster([exact()], servers=2, keys=server) as cluster:
            service = cluster.connect(keys=client)
            ids = np.arange(5000, dtype=np.uint64)
            service.pull(PullRequest(ids={"t": ids}, create=True))
            assert outcome(service.push(push_of(1, ids, 3))) == (5000, {}, False)
            seen.append(pull(service, "t", ids))
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("bind", ["tcp://*:*", "tcp://0.0.0.0:*", "tcp://[::]:*"])
def test_an_address_that_others_reach_needs_keys_or_the_word_insecure(bind: str) -> None:
    # A flaw of an early system: servers bound all addresses.
    with pytest.raises(ServiceError, match="satrap keys new"):
        Server([exact()], seed=0, partitions=8, bind=bind)


def test_insecure_and_keys_each_open_an_address_for_others() -> None:
    for options in ({"insecure": True}, {"keys": KEYS.server}):
        with Server([exact()], seed=0, partitions=8, threads=1, bind="tcp://0.0.0.0:*", **options) as server:  # type: ignore[arg-type]
            assert server.address.startswith("tcp://0.0.0.0:")


def test_a_client_goes_to_other_machines_only_with_keys_or_the_word_insecure() -> None:
    placement = Placement.even(["tcp://192.0.2.1:7000"], 8)
    with pytest.raises(ServiceError, match="satrap keys new"):
        RemoteService([exact()], placement, seed=0)
    RemoteService([exact()], placement, seed=0, insecure=True).close()
    RemoteService([exact()], placement, seed=0, keys=KEYS.client(Role.READER)).close()


def test_key_files_are_readable_by_their_user_alone_and_read_back_equal(tmp_path: Path) -> None:
    files = KEYS.save(tmp_path / "keys")
    assert {f.name for f in files} == {"server.key", "reader.key", "worker.key", "admin.key"}
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
    assert Keys.load(tmp_path / "keys") == KEYS
    with pytest.raises(ServiceError, match="there already"):
        KEYS.save(tmp_path / "keys")


def test_a_role_holds_neither_the_servers_secret_nor_another_roles(tmp_path: Path) -> None:
    files = {f.stem: f.read_text() for f in KEYS.save(tmp_path)}
    secrets = {"server": KEYS.server.own.secret, **{r.name.lower(): KEYS.client(r).own.secret for r in Role}}
    for holder, text in files.items():
        assert [who for who, secret in secrets.items() if secret in text] == [holder]


def test_secrets_are_not_printed() -> None:
    for keys in (KEYS, KEYS.server, KEYS.client(Role.WORKER)):
        assert KEYS.server.own.secret not in repr(keys)
        assert KEYS.client(Role.WORKER).own.secret not in repr(keys)


def test_key_files_that_others_may_read_or_that_are_none_are_refused(tmp_path: Path) -> None:
    KEYS.save(tmp_path)
    worker, server = tmp_path / "worker.key", tmp_path / "server.key"
    worker.chmod(0o640)
    with pytest.raises(ServiceError, match=f"chmod 600 {worker}"):
        load_client_keys(worker)
    worker.chmod(0o600)
    with pytest.raises(ServiceError, match="a server needs"):
        load_server_keys(worker)
    with pytest.raises(ServiceError, match="keys of a server"):
        load_client_keys(server)
    with pytest.raises(ServiceError, match="satrap keys new"):
        load_server_keys(tmp_path / "none.key")
    for text in ("", "{}", '{"holder": "king"}', server.read_text().replace('"admin"', '"king"')):
        server.write_text(text)
        with pytest.raises(ServiceError, match="is not a key file"):
            load_server_keys(server)
