"""The table "to add X, touch these files" of CONTRIBUTING.md: its files exist, and each row's files are enough."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from mixserve.servicer.services import Services
from mixserve.sessions.operations import OPERATIONS
from mixserve_client import AsyncMixClient, AsyncSession, MixClient, Session
from mixserve_client.nnx import RemoteMixDataSourcesNode
from mixserve_client.options import BatchOptions, ConnectOptions
from mixserve_client.wire import methods
from tests.conftest import make_node

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (an? .+?) \| (.+?) \| (.+?) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)


def test_every_file_of_the_table_is_there():
    assert len(ROWS) >= 6
    named = [path for row in ROWS for cell in row for path in re.findall(r"`([\w./]+/[\w./]+)`", cell)]
    assert len(named) > 15
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("options", "calls"),
    [(ConnectOptions, ("connect",)), (BatchOptions, ("batches",))],
)
def test_every_option_is_an_argument_of_both_clients(options, calls):
    """A new field cannot be forgotten: the asyncio client takes its arguments from the other one."""
    for client in (MixClient, AsyncMixClient):
        for call in calls:
            parameters = inspect.signature(getattr(client, call)).parameters
            for field in fields(options):
                assert field.name in parameters, (client, field.name)
                default = inspect.Parameter.empty if field.default is MISSING else field.default
                assert parameters[field.name].default == default, (client, field.name)


def test_every_operation_of_sessions_is_on_all_that_have_sessions():
    by_protocol = {"start_epoch": "__iter__", "next_record": "__next__"}
    of_sessions = {"save_checkpoint", "restore_checkpoint", "list_checkpoints", "delete_checkpoint"}
    for name in OPERATIONS:
        assert callable(getattr(Session, by_protocol.get(name, name))), name
        assert inspect.iscoroutinefunction(getattr(AsyncSession, name)), name
        if name not in of_sessions:
            assert callable(getattr(RemoteMixDataSourcesNode, by_protocol.get(name, name))), name


def test_every_method_of_the_protos_is_served():
    services = Services({"train": make_node()})
    try:
        served = {*services.pure_methods, *services.mix.streams, *services.state.methods}
    finally:
        services.close()
    paths = {value for name, value in vars(methods).items() if name.isupper() and str(value).startswith("/")}
    assert paths == served
