"""A client that is closed says nothing about a name that its resolver could not find in time."""

from collections.abc import Sequence

import pytest

from mixserve_client.rpc.fleet import _Name
from mixserve_client.transport.base import Transport
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.names import NameTransport

NOWHERE = "127.0.0.1:1"


class Unknown:
    """What a resolver says of a name that does not exist."""

    every_s, fewest = 10.0, 2

    def __call__(self, known: Sequence[Transport]) -> tuple[str, ...]:
        raise OSError("Name or service not known")


@pytest.mark.parametrize("is_closed", [False, True])
def test_what_is_said_of_a_name_that_cannot_be_looked_up(is_closed: bool, caplog: pytest.LogCaptureFixture) -> None:
    name = _Name(NameTransport("dns:///data.example:1", Unknown(), GrpcTransport(NOWHERE), GrpcTransport))
    if is_closed:
        name.close()
    assert not name.look_up()
    assert ["cannot be looked up" in said for said in caplog.messages] == [True] * (not is_closed)
