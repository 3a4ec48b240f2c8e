"""The standard gRPC reflection service, in its own threads: a client may keep its stream open for ever."""

from collections.abc import Iterator

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mixserve.serving.guard import Admission
from mixserve.serving.statuses import statuses
from mixserve.serving.threads import CallThreads

METHOD = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
_THREADS = 2


class Reflection:
    """Lets clients list the `services` of a server, and reflection itself, and get their descriptors."""

    def __init__(self, services: tuple[str, ...]):
        self._threads = CallThreads(_THREADS, "mixserve-reflection")
        self._servicer = reflection.ReflectionServicer((*services, reflection.SERVICE_NAME))

    def handler(self, admission: Admission) -> grpc.RpcMethodHandler:
        """The handler of one call."""

        def info(
            requests: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
        ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
            acting = admission.acting(context.peer)
            with statuses(context, acting.call):
                for request in requests:
                    with acting:  # for each: the token may be revoked while the stream stays open
                        replies = list(self._servicer.ServerReflectionInfo(iter([request]), context))
                    yield from replies

        # As in health.py: a bound method cannot have attributes.
        info.experimental_thread_pool = self._threads  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.stream_stream_rpc_method_handler(
            info,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )

    def close(self) -> None:
        """End the threads after the calls that they have."""
        self._threads.shutdown()
