"""No token and no key stands in anything that a server and a client write, say or show."""

import asyncio
import gc
import io
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from mixserve.access import failures
from mixserve.access.entries import digest_of
from mixserve_client import AsyncMixClient, MixClient, MixserveError, TlsOptions
from mixserve_client.wire import methods
from tests.certificates import NEEDS_OPENSSL, Pair
from tests.forked import Forked, wait_for_line
from tests.processes import DEADLINE_S, write_mixture
from tests.security.test_commands import run_app
from tests.security.world import World
from tests.tokens.calling import bearer
from tests.tokens.files import Tokens, replace_file

pytestmark = NEEDS_OPENSSL

OUR_LOGGERS = ("mixserve", "mixserve.audit", "mixserve_client")
WINDOW = 10  # characters of a secret that no output may have


class Secrets:
    """Texts of which no output may have a part."""

    def __init__(self, tokens: list[str], keys: list[Path]):
        bodies = [token.removeprefix("mixserve_") for token in tokens]
        bodies += [digest_of(token).hex() for token in tokens]
        bodies += [line for key in keys for line in key.read_text().splitlines() if not line.startswith("-----")]
        self._parts = {body[at : at + WINDOW] for body in bodies for at in range(max(1, len(body) - WINDOW + 1))}

    def check(self, output: str, where: str) -> None:
        for part in self._parts:
            at = output.find(part)
            assert at < 0, f"{where} shows a secret: {output[max(0, at - 200) : at + 50]}"


def serve_loudly(*arguments: str) -> None:
    """`mixserve serve`, with our loggers at DEBUG."""
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s %(args)s", force=True)
    for name in OUR_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.setLevel = lambda level: None  # the command would set INFO
    serve_quietly(*arguments)


def serve_quietly(*arguments: str) -> None:
    """`mixserve serve`, which answers failures at once."""
    failures._LONGEST_DELAY_S = 0.0
    run_app(["serve", *arguments], {})


def client_errors(address: str, tls: TlsOptions | None, **options: Any) -> str:
    """What a client says to whom a server says no, as text, repr and traceback."""
    with MixClient.connect(address, tls=tls, patience_s=2, shared_memory=False, **options) as client:
        said = [repr(client)]
        for call in (
            client.mixtures,
            lambda: client.session("refused"),
            lambda: client.session("refused").save_checkpoint("one"),
            lambda: next(client.batches(4, 1)),
        ):
            try:
                call()
            except MixserveError as error:
                said.append(f"{error} {error!r} {''.join(traceback.format_exception(error))}")
        return "\n".join(said)


def raw_errors(address: str, tls: TlsOptions, metadata: Any) -> str:
    """What gRPC's own client says to odd metadata."""
    ca, own, key = (Path(str(path)).read_bytes() for path in (tls.ca, tls.certificate, tls.key))
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, own)) as channel:
        try:
            channel.unary_unary(methods.LIST_MIXTURES)(b"", metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return f"{error} {error!r}"
    return ""


def read_and_save(address: str, tls: TlsOptions, token_file: Path) -> str:
    """What a trainer does; returns what it shows of it."""
    with MixClient.connect(address, tls=tls, token_file=token_file, patience_s=20) as client:
        batches = client.batches(4, 1)
        session = client.session("shown")
        next(batches)
        next(session)
        checkpoint = session.save_checkpoint("one")
        session.restore_checkpoint("one")
        shown = [client, batches, batches.get_state(), session, checkpoint, client.catalog, client.mixture()]
        shown += [client.view_session("shown"), client.sessions(), tls, session.get_state()]
        said = "\n".join(f"{thing!r} {thing}" for thing in shown)
        session.close()
    return said


async def read_with_asyncio(address: str, tls: TlsOptions, token: str) -> str:
    async with AsyncMixClient.connect(address, tls=tls, token=token) as client:
        batches = client.batches(4, 1)
        await anext(batches)
        session = await client.session("shown-too")
        said = f"{client!r} {batches!r} {session!r} {client}"
        await session.close()
        return said


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the client logs in this process, at DEBUG."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logger = logging.getLogger("mixserve_client")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield written
    logger.setLevel(before)
    logger.removeHandler(handler)


@pytest.mark.parametrize("serve", [serve_quietly, serve_loudly])
def test_no_output_of_a_run_has_a_token_or_a_key(
    world: World, tmp_path: Path, log: io.StringIO, capfd: pytest.CaptureFixture[str], serve: Any
) -> None:
    made, config = world.made, write_mixture(tmp_path)
    pair = made.server.copy_to(tmp_path)
    tokens = Tokens(tmp_path / "tokens.yaml", {"t": ("trainer", None), "r": ("reader", None)})
    token_file = tmp_path / "token"
    token_file.write_text(tokens["t"])
    keys = [made.server.key, made.client.key, made.stranger.key, made.alone.key]
    secrets = Secrets([*tokens.by_name.values(), wrong := tokens["t"][:-1] + "~"], keys)
    config.write_text(
        config.read_text().partition("server:")[0]
        + f"server: {{port: 0, tokens: tokens.yaml, state_dir: state, tls: {{certificate: tls.pem, key: tls.key, "
        f"client_ca: {made.authority.ca}}}}}\n"
    )
    running = Forked(serve, str(config), "--health-port", "0", log=tmp_path / "log")
    try:
        address = wait_for_line(running, _found, DEADLINE_S)
        right = world.own()
        said = [read_and_save(address, right, token_file), asyncio.run(read_with_asyncio(address, right, tokens["t"]))]
        said += [client_errors(address, right, token=token) for token in (None, wrong, tokens["r"])]
        said += [client_errors(address, tls, token=tokens["t"]) for tls in _wrong(made.authority.ca, made)]
        for metadata in _odd(tokens["t"]):
            said.append(raw_errors(address, right, metadata))
        # Files that have secrets where nobody expects them.
        for text in (f"tokens: [{tokens['t']}]", f"tokens: [{{{tokens['t']}: {wrong}", f"{tokens['t']}: {wrong}"):
            replace_file(tokens.path, text)
            said.append(client_errors(address, right, token=wrong))
        pair.key.write_text(made.client.key.read_text())
        said.append(client_errors(address, right, token=tokens["t"]))
        pair.certificate.write_text(made.server.key.read_text())
        said.append(client_errors(address, right, token=tokens["t"]))
        title = _title(running.pid)
        running.send_signal(15)
        assert running.wait(DEADLINE_S) == 0
    finally:
        running.kill()
    server_log = running.log()
    # That there was something to be seen.
    for event in ("session-opened who=t", "checkpoint-saved", "refused who=unknown", "refused who=r"):
        assert event in server_log
    assert "The tokens that were read before stay valid" in server_log
    assert "goes on with the certificate that it had" in server_log
    assert "requires a token" in "".join(said)
    for where, output in (
        ("the server's log", server_log),
        ("the server's command line", title),
        ("a client", "\n".join(said)),
        ("a client's log", log.getvalue()),
        ("the output of this process", "".join(capfd.readouterr())),
    ):
        secrets.check(output, where)


def test_no_object_shows_a_token_or_a_key(world: World) -> None:
    """Whatever there is of ours in this process, of a server and of clients, public or not."""
    made, right = world.made, world.own()
    token = world.tokens["trainer"]
    token_file = world.folder / "token"
    token_file.write_text(token)
    secrets = Secrets(list(world.tokens.by_name.values()), [made.server.key, made.client.key])
    server = world.server("mutual and tokens")
    with (
        world.client(server, tls=right, token=token) as client,
        world.client(server, tls=right, token_file=token_file) as other,
        client.session("shown", mixture="a") as session,
    ):
        batches = other.batches(4, 1, mixture="a")
        next(batches)
        next(session)
        kinds = set[str]()
        for thing in gc.get_objects():
            if _is_ours(type(thing)):
                kinds.add(type(thing).__name__)
                secrets.check(repr(thing), f"the repr of a {type(thing).__name__}")
    assert {"MixServer", "MixClient", "Guard", "TokenFile", "Certificates", "Credentials", "TlsOptions"} <= kinds
    assert {"Pair", "TokenOptions", "Session", "BatchIterator"} <= kinds


def _is_ours(kind: type) -> bool:
    home: object = kind.__module__  # of some types, it is not a text
    return isinstance(home, str) and home.startswith("mixserve") and "_generated" not in home


def _found(log: str) -> str | None:
    _, found, rest = log.partition("serving on ")
    return rest.split()[0] if found and rest.strip() else None


def _wrong(ca: Path, made: Any) -> list[TlsOptions | None]:
    def showing(pair: Pair) -> TlsOptions:
        return TlsOptions(ca, pair.certificate, pair.key)

    return [
        None,
        TlsOptions(ca),
        TlsOptions(made.other.ca, made.client.certificate, made.client.key),
        showing(made.stranger),
        showing(made.alone),
    ]


def _odd(token: str) -> list[Any]:
    return [
        (("authorization", token),),
        (("authorization", f"Basic {token}"),),
        (("authorization", f"Bearer {token} {token}"),),
        (("authorization", f"Bearer {token}" + "x" * 3000),),
        (("authorization-bin", token.encode()),),
        bearer(token) + bearer(token),
    ]


def _title(pid: int) -> str:
    file = Path(f"/proc/{pid}/cmdline")
    return file.read_bytes().decode() if file.exists() else ""
