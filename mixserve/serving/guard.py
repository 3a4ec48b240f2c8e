"""A call's metadata -> who calls, or a refusal, before any of the threads that answer calls is taken."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc

from mixserve.access.audit import Refusals
from mixserve.access.call import Call
from mixserve.access.entries import digest_of
from mixserve.access.failures import Failures
from mixserve.access.identity import EVERYBODY, Identity, Role, acting_as, check_role
from mixserve.access.tokens import TokenFile
from mixserve.serving.statuses import statuses
from mixserve.serving.threads import CountingThreads
from mixserve_client.errors import MixserveError, PermissionDenied, Unauthenticated, Unavailable
from mixserve_client.wire import methods

_AUTHORIZATION = "authorization"
_SCHEME = "bearer"
_LONGEST_TOKEN = 1024
_THREADS, _MOST_WAITING = 8, 4
_HINT = "send a token as mixserve token new makes it, as the metadata `authorization: Bearer TOKEN`"

_ROLES = {methods.SERVICE_NAME: Role.READER, methods.STATE_SERVICE_NAME: Role.TRAINER}

Metadata = Iterable[tuple[str, str | bytes]]


def peer_of(context: grpc.ServicerContext) -> str:
    """The host and port at the other end of a call's connection."""
    return context.peer()


class Guard:
    """Decides who may call what. Without `tokens`, everybody may do everything."""

    def __init__(
        self,
        tokens: TokenFile | None,
        peer_of: Callable[[grpc.ServicerContext], str] = peer_of,
        note_refused: Callable[[str, MixserveError], None] = lambda method, error: None,  # noqa: ARG005
    ):
        """`peer_of` tells who made a call, for the log; `note_refused` counts the calls that are not admitted."""
        self._tokens = tokens
        self.peer_of = peer_of
        self._note_refused = note_refused
        self._failures = Failures()
        self.refusals = Refusals()
        # Refused calls have their own threads, so that strangers cannot occupy those of others.
        self._threads = CountingThreads(_THREADS, "mixserve-refused")
        self.start_missing = self._threads.start_missing
        self._may_wait = threading.Semaphore(_MOST_WAITING)
        self._closed = threading.Event()

    @property
    def generation(self) -> int:
        """Another number whenever there are other tokens."""
        return 0 if self._tokens is None else self._tokens.generation

    def admit(self, method: str, metadata: Metadata) -> "Admission":
        """Whom the metadata of a call stand for. Raises Unauthenticated and `Denied`."""
        needed = _ROLES.get(method.rpartition("/")[0].removeprefix("/"), Role.ADMIN)
        if self._tokens is None:
            return Admission(self, method, needed, EVERYBODY, b"", 0)
        generation = self._tokens.generation  # before the search, so that a change meanwhile is noticed
        digest = digest_of(bearer_token(metadata))
        identity = self._tokens.find_digest(digest)
        if identity is None:
            raise Unauthenticated(f"the server does not know this token: it is wrong, or was revoked; {_HINT}")
        try:
            check_role(identity, needed, method)
        except PermissionDenied as error:
            raise Denied(error, identity) from error
        return Admission(self, method, needed, identity, digest, generation)

    def find_again(self, digest: bytes) -> Identity:
        """Whom an admitted token stands for now. Raises Unauthenticated."""
        identity = None if self._tokens is None else self._tokens.find_digest(digest)
        if identity is None:
            raise Unauthenticated("the token of this call was revoked while it ran; call with another one")
        return identity

    def refusing(self, method: str, error: "MixserveError | Denied") -> grpc.RpcMethodHandler:
        """A gRPC handler that ends a call of `method` with `error`."""

        def refuse(_: object, context: grpc.ServicerContext) -> None:
            call = Call(method.rpartition("/")[2])
            with statuses(context, call):
                raise self._refuse(method, error, context, call)

        refuse.experimental_thread_pool = self._threads  # pyright: ignore[reportFunctionMemberAccess]
        # Of streams, whatever the method is: the request of others would have to come first, and it may never come.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def report(self) -> None:
        """Log what is left to say of failures; call it every few seconds."""
        self._failures.report()
        self.refusals.report()

    def close(self) -> None:
        """Answer what waits."""
        self._closed.set()
        self._threads.shutdown()

    def _refuse(
        self, method: str, error: "MixserveError | Denied", context: grpc.ServicerContext, call: Call
    ) -> MixserveError:
        """Count and log the refusal. Returns what to raise, after the delay of a host that fails too often."""
        peer = self.peer_of(context)
        self._note_refused(method, error.error if isinstance(error, Denied) else error)
        if isinstance(error, Denied):
            self.refused(error.error, error.identity, peer, call)
            return error.error
        if not isinstance(error, Unauthenticated):
            return error
        self.refused(error, None, peer, call)
        delay_s = self._failures.add(peer)
        # Most threads stay free: if too many calls wait already, this one is answered at once.
        if delay_s and self._may_wait.acquire(blocking=False):
            try:
                self._closed.wait(delay_s)
            finally:
                self._may_wait.release()
        return error

    def refused(self, error: MixserveError, identity: Identity | None, peer: str, call: Call) -> None:
        """Tell the audit."""
        who = "unknown" if identity is None else identity.name
        self.refusals.add(type(error).__name__, who, peer, call.method, str(error), call.id)


class Denied(Exception):
    """The PermissionDenied of a known caller."""

    def __init__(self, error: PermissionDenied, identity: Identity):
        super().__init__(error)
        self.error, self.identity = error, identity


@dataclass(frozen=True, slots=True)
class Admission:
    """A call that may begin. `digest` is that of its token, and `generation` that of the tokens when it was found."""

    guard: Guard
    method: str
    needed: Role
    identity: Identity
    digest: bytes = field(repr=False)
    generation: int

    def acting(self, peer: Callable[[], str], is_wanted: Callable[[], bool] = lambda: True) -> "Acting":
        """What to enter while this call from `peer()` is answered: once, or for each reply of a stream.

        `is_wanted` says whether the client still waits for the reply.
        """
        return Acting(self, peer, is_wanted)


class Acting:
    """A context in which a thread acts for the caller of one call. Raises what has become of its rights on entering."""

    __slots__ = ("_acting", "_admission", "_generation", "_identity", "_is_wanted", "_peer", "call")

    def __init__(self, admission: Admission, peer: Callable[[], str], is_wanted: Callable[[], bool]):
        self._admission, self._peer, self._is_wanted = admission, peer, is_wanted
        self._generation, self._identity = admission.generation, admission.identity
        self.call = Call(admission.method.rpartition("/")[2])
        self._acting = acting_as(self._identity, peer, admission.needed, is_wanted, self.call)

    def __enter__(self) -> None:
        if self._admission.guard.generation != self._generation:
            self._renew()
        self._acting.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._acting.__exit__(kind, error, trace)
        if isinstance(error, PermissionDenied):  # of a mixture
            self._tell(error)

    def _renew(self) -> None:
        admission = self._admission
        self._generation = admission.guard.generation
        try:
            self._identity = admission.guard.find_again(admission.digest)
            check_role(self._identity, admission.needed, admission.method)
        except (Unauthenticated, PermissionDenied) as error:
            self._tell(error)
            raise
        self._acting = acting_as(self._identity, self._peer, admission.needed, self._is_wanted, self.call)

    def _tell(self, error: MixserveError) -> None:
        self._admission.guard.refused(error, self._identity, self._peer(), self.call)


MakeHandler = Callable[[Admission], grpc.RpcMethodHandler]


class GuardedHandlers(grpc.GenericRpcHandler):
    """The handlers of methods, by path; each is made for the admission of its call."""

    # gRPC asks for a handler before it reads the request. So a stranger who never sends one holds no thread.

    def __init__(self, guard: Guard, makers: Mapping[str, MakeHandler]):
        self._guard = guard
        self._makers = dict(makers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        details: Any = handler_call_details  # its attributes have no types
        make = self._makers.get(details.method)
        if make is None:
            return None
        try:
            return make(self._guard.admit(details.method, details.invocation_metadata or ()))
        except (Unauthenticated, Denied) as error:
            return self._guard.refusing(details.method, error)
        except BaseException as error:  # such as SystemExit from a handler of the log: gRPC's own thread must live
            reason = f"the server could not look at the token: {type(error).__name__}; ask again"
            return self._guard.refusing(details.method, Unavailable(reason))


def bearer_token(metadata: Metadata) -> str:
    """The token in a call's metadata. Raises Unauthenticated, which shows nothing of it."""
    found = [value for key, value in metadata if key == _AUTHORIZATION]
    if not found:
        raise Unauthenticated(f"this server requires a token; {_HINT}")
    value = found[0]
    if len(found) > 1 or not isinstance(value, str) or len(value) > len(_SCHEME) + 1 + _LONGEST_TOKEN:
        raise Unauthenticated(f"the metadata have no token of up to {_LONGEST_TOKEN} characters, once; {_HINT}")
    scheme, _, token = value.partition(" ")
    if scheme.lower() != _SCHEME or not token or not (token.isascii() and token.isprintable()) or " " in token:
        raise Unauthenticated(f"the metadata `authorization` do not have the form of a bearer token; {_HINT}")
    return token
