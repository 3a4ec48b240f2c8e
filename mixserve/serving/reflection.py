"""The standard gRPC reflection service, in its own threads: a client may keep its stream open for ever."""

from collections.abc import Iterator
from concurrent.futures import Future

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mixserve.serving.guard import Acting, Admission
from mixserve.serving.statuses import statuses
from mixserve.serving.threads import CountingThreads
from mixserve_client.errors import Unavailable
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.wire.standard_request import decode_standard_request

METHOD = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
_THREADS = 2
_LOOK_EVERY_S = 1.0  # at whether the token of a stream that says nothing is still valid


class Reflection:
    """Lets clients list the `services` of a server, and reflection itself, and get their descriptors."""

    def __init__(self, services: tuple[str, ...]):
        self._threads = CountingThreads(_THREADS, "mixserve-reflection")
        # gRPC lets a thread wait for the next request without end, so others than those that answer do it.
        self._waiting = DaemonThreadPool(2 * _THREADS, on_exit=_nothing, name="mixserve-reflection-wait")
        self._servicer = reflection.ReflectionServicer((*services, reflection.SERVICE_NAME))
        self.start_missing = self._threads.start_missing

    def handler(self, admission: Admission) -> grpc.RpcMethodHandler:
        """The handler of one call."""

        def info(
            requests: Iterator[bytes], context: grpc.ServicerContext
        ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
            acting = admission.acting(context.peer)
            with statuses(context, acting.call):
                while (data := self._next(requests, acting)) is not None:
                    with acting:  # for each: the token may be revoked while the stream stays open
                        request = decode_standard_request(reflection_pb2.ServerReflectionRequest, data)
                        replies = list(self._servicer.ServerReflectionInfo(iter([request]), context))
                    yield from replies

        # As in health.py: a bound method cannot have attributes.
        info.experimental_thread_pool = self._threads  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.stream_stream_rpc_method_handler(
            info,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )

    def close(self) -> None:
        """End the threads after the calls that they have."""
        self._threads.shutdown()
        self._waiting.close()

    def _next(self, requests: Iterator[bytes], acting: Acting) -> bytes | None:
        """The next request, None at the end. Raises what becomes of the caller's rights meanwhile."""
        try:
            coming: Future[bytes | None] = self._waiting.submit(lambda: next(requests, None))
        except RuntimeError as error:  # of the system's limit on threads
            raise Unavailable(f"this server has no thread for the call ({error}); ask again") from error
        while True:
            try:
                return coming.result(_LOOK_EVERY_S)
            except TimeoutError:
                with acting:
                    pass


def _nothing() -> None:
    pass
