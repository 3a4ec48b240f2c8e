"""Commands with an address, each in a process of its own, over TLS with a token: from variables and from options."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixserve import MixServer
from mixserve.cli.main import app
from tests.certificates import NEEDS_OPENSSL
from tests.forked import Forked
from tests.security.world import World
from tests.tokens.test_commands import COMMANDS

pytestmark = NEEDS_OPENSSL

DEADLINE_S = 60
ALL = [*COMMANDS, ("health", "{}")]


def run_app(arguments: list[str], environ: dict[str, str]) -> None:
    for name in ("MIXSERVE_CA", "MIXSERVE_TOKEN"):
        os.environ.pop(name, None)
    os.environ.update(environ)
    app(arguments, prog_name="mixserve")


@pytest.fixture(scope="module")
def server(world: World) -> MixServer:
    return world.start(**world.options("mutual and tokens"), state_dir=world.folder / "state")


@pytest.fixture(scope="module")
def without_certificates(world: World) -> MixServer:
    return world.start(**world.options("server"), tokens=world.tokens.path, state_dir=world.folder / "state-2")


def test_every_command_takes_the_variables(world: World, without_certificates: MixServer, tmp_path: Path) -> None:
    token, ca = world.tokens["trainer"], world.made.authority.ca
    environ = {"MIXSERVE_CA": str(ca), "MIXSERVE_TOKEN": token}
    with world.client(without_certificates, tls=ca, token=token) as client:
        client.session("of-commands", mixture="a").close()
    for number, command in enumerate(ALL):
        arguments = [part.format(without_certificates.address) for part in command]
        done = Forked(run_app, arguments, environ, log=tmp_path / f"log-{number}")
        assert done.wait(DEADLINE_S) == 0, done.log()
        assert token not in done.log()
    for wrong, said in (
        ({**environ, "MIXSERVE_TOKEN": ""}, "requires a token"),
        ({**environ, "MIXSERVE_TOKEN": f"{token}x"}, "does not know this token"),
        ({**environ, "MIXSERVE_CA": str(world.made.other.ca)}, "is signed by CN=Test Authority"),
        ({**environ, "MIXSERVE_CA": ""}, "the server speaks TLS"),
    ):
        done = Forked(run_app, ["info", without_certificates.address], wrong, log=tmp_path / f"wrong-{said}")
        assert done.wait(DEADLINE_S) == 2
        assert said in done.log()
        assert token not in done.log()


def test_every_command_takes_the_options(world: World, server: MixServer, tmp_path: Path) -> None:
    made, token_file = world.made, tmp_path / "token"
    token_file.write_text(world.tokens["trainer"])
    own = ("--certificate", made.client.certificate, "--key-file", made.client.key)
    options = [str(part) for part in ("--ca", made.authority.ca, *own, "--token-file", token_file)]
    with world.client(server, tls=world.own(), token_file=token_file) as client:
        client.session("of-commands", mixture="a").close()
    for number, command in enumerate(ALL):
        arguments = [part.format(server.address) for part in command]
        done = Forked(run_app, [*arguments, *options], {}, log=tmp_path / f"log-{number}")
        assert done.wait(DEADLINE_S) == 0, done.log()


def test_a_command_as_a_user_starts_it(world: World, without_certificates: MixServer) -> None:
    environ = {"MIXSERVE_CA": str(world.made.authority.ca), "MIXSERVE_TOKEN": world.tokens["reader-a"]}
    done = subprocess.run(
        [sys.executable, "-m", "mixserve", "info", without_certificates.address],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mixture a" in done.stdout
    assert "mixture b" not in done.stdout
