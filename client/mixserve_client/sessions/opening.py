"""Opens a session, and leaves none behind that its caller does not know; lists those of a server."""

import os
import secrets
import socket

from mixserve_client.errors import CorruptReply, DeadlineExceeded, InvalidRequest
from mixserve_client.rpc.resources import ClientResources, Resources
from mixserve_client.schema.checks import check_mixture, check_truth
from mixserve_client.schema.mixture import MixtureDescription
from mixserve_client.schema.sessions import HeldSession, OpenRequest, SessionDescription, check_name
from mixserve_client.sessions.leases import LeaseKeeper
from mixserve_client.sessions.session import Session, is_definite
from mixserve_client.wire import methods
from mixserve_client.wire.session import decode_opened, decode_sessions, encode_list_request, encode_open_request


def open_session(
    resources: Resources,
    leases: LeaseKeeper,
    mixture: MixtureDescription,
    name: str,
    deadline: float | None,
    timeout_s: float | None,
    *,
    fresh: bool,
    take_over: bool,
    strict: bool,
) -> Session:
    """Open the session `name` until `deadline`; each of its calls has `timeout_s` seconds.

    `MixClient.session` says what the other arguments mean, and what this raises.
    """
    held = HeldSession(mixture.name, check_name("session", name), secrets.token_hex(16))
    request = OpenRequest(
        *held,
        holder=f"process {os.getpid()} on {socket.gethostname()}",
        fresh=check_truth("fresh", fresh),
        take_over=check_truth("take_over", take_over),
        strict=check_truth("strict", strict),
        expected_fingerprint=mixture.fingerprint,
    )
    # An earlier call may have abandoned this session under another lease, for which the server would refuse us.
    leases.settle(mixture.name, name, deadline)
    try:
        reply = resources.here.session_caller.call(methods.OPEN_SESSION, encode_open_request(request), deadline)
        return Session(resources, leases, held, decode_opened(reply), timeout_s, mixture.fields)
    except BaseException as error:
        # The server may have opened the session although this call failed: release it, or our own retry would get
        # SessionTaken. After a timeout a background thread does so, since this caller has no time left.
        if isinstance(error, DeadlineExceeded):
            leases.abandon(held)
        elif not is_definite(error):
            leases.release(held, deadline=deadline)
        raise


def check_one_server(resources: ClientResources) -> None:
    """Raises InvalidRequest if there are replicas, or may be."""
    caller = resources.session_caller
    if resources.fleet is not None:
        raise InvalidRequest(
            f"a session lives on one server, and {resources.fleet} stands for all replicas that there are at a time; "
            'connect a second client to one of them, as with MixClient.connect("HOST:PORT"), and read batches with this'
        )
    if caller.replicas > 1:
        raise InvalidRequest(
            f"a session lives on one server, and this client has {caller.replicas}, each with other sessions in a "
            "state folder of its own; connect a second client to the server that holds it, as with "
            'MixClient.connect("HOST:PORT"), and read batches with this one'
        )


def list_sessions(
    resources: ClientResources, mixture: str | None, deadline: float | None
) -> tuple[SessionDescription, ...]:
    """The server's sessions, of one mixture or of all. Raises what a call raises, and InvalidRequest."""
    check_one_server(resources)
    request = encode_list_request(check_mixture(mixture))
    found = decode_sessions(resources.session_caller.call(methods.LIST_SESSIONS, request, deadline))
    other = next((session.mixture for session in found if mixture and session.mixture != mixture), None)
    if other is not None:
        raise CorruptReply(f"the server lists sessions of the mixture {other!r:.100}, not of {mixture!r}")
    return found
