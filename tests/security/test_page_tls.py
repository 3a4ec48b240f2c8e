"""The first table of docs/security.md: which certificates connect which clients to which servers."""

import pytest

from mixserve_client import TlsOptions, Unauthenticated
from tests.certificates import NEEDS_OPENSSL, Pair
from tests.security.page import TLS
from tests.security.world import Outcome, World

pytestmark = NEEDS_OPENSSL


def call(world: World, server: str, tls: TlsOptions | None, **options: str) -> str:
    """What becomes of a call: "yes", or the error's words."""
    with world.client(world.server(server), tls=tls, **options) as client:
        try:
            assert client.get_batch_at(0, 4, key=1, mixture="a")["id"].shape == (4, 1024)
        except Unauthenticated as error:
            return f"no: {error}"
    return "yes"


def trusting(server: str) -> Outcome:
    """A client that trusts the authority, and a server with that certificate."""
    return lambda world: call(world, server, TlsOptions(world.made.authority.ca))


def without_tls(server: str) -> Outcome:
    return lambda world: call(world, server, None)


def own(world: World, pair: Pair | None) -> TlsOptions:
    ca = world.made.authority.ca
    return TlsOptions(ca) if pair is None else TlsOptions(ca, pair.certificate, pair.key)


def showing(pair: str | None, server: str = "mutual", token: str | None = None) -> Outcome:
    """A client that has this certificate, and a server with `client_ca`."""

    def run(world: World) -> str:
        options = {} if token is None else {"token": world.tokens[token]}
        return call(world, server, own(world, None if pair is None else getattr(world.made, pair)), **options)

    return run


RIGHT = "a certificate for its name, of an authority that the client trusts"
BOTH = "`client_ca` and tokens"
ROWS: dict[tuple[str, ...], Outcome] = {
    (RIGHT, "`tls`"): trusting("server"),
    (RIGHT, "no `tls`"): without_tls("server"),
    ("a certificate of another authority", "`tls`"): trusting("stranger"),
    ("a certificate that has expired", "`tls`"): trusting("expired"),
    ("a certificate of an authority that has expired", "`tls`"): lambda world: call(
        world, "orphan", TlsOptions(world.made.old.ca)
    ),
    ("a certificate that is not valid yet", "`tls`"): trusting("early"),
    ("a certificate for another host", "`tls`"): trusting("elsewhere"),
    ("a self-signed certificate", "`tls`"): trusting("alone"),
    ("a self-signed certificate", "`tls`, and that certificate as its `ca`"): lambda world: call(
        world, "alone", TlsOptions(world.made.alone.certificate)
    ),
    ("no `tls`", "`tls`"): trusting("plain"),
    ("`client_ca`", "a certificate of such an authority"): showing("client"),
    ("`client_ca`", "no certificate"): showing(None),
    ("`client_ca`", "a certificate that has expired"): showing("expired"),
    ("`client_ca`", "a certificate of an authority of it that has expired"): lambda world: call(
        world, "old clients", own(world, world.made.orphan)
    ),
    ("`client_ca`", "a certificate of another authority"): showing("stranger"),
    ("`client_ca`", "a self-signed certificate"): showing("alone"),
    ("`client_ca`", "no `tls`"): without_tls("mutual"),
    (BOTH, "a certificate, and a token"): showing("client", "mutual and tokens", "reader"),
    (BOTH, "a certificate, and no token"): showing("client", "mutual and tokens"),
    (BOTH, "a token, and no certificate"): showing(None, "mutual and tokens", "reader"),
}


def test_each_row_is_tried() -> None:
    assert [row[:2] for row in TLS] == list(ROWS)


@pytest.mark.parametrize("row", TLS, ids=lambda row: " / ".join(row[:2]))
def test_the_table_is_right(world: World, row: tuple[str, ...]) -> None:
    *which, said = row
    outcome = ROWS[tuple(which)](world)
    assert outcome.startswith("no: ") == said.startswith("no: "), outcome
    assert said.removeprefix("no: ") in outcome
