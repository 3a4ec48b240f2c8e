"""The standard gRPC reflection service, in its own threads: a client may keep its stream open for ever."""

from collections.abc import Iterable, Iterator

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from mixserve.serving.threads import CallThreads

_THREADS = 2


def add_reflection(server: grpc.Server, services: tuple[str, ...]) -> CallThreads:
    """Let clients list the `services` of `server`, and reflection itself, and get their descriptors.

    Returns the threads that answer; the caller shuts them down.
    """
    threads = CallThreads(_THREADS, "mixserve-reflection")
    servicer = reflection.ReflectionServicer((*services, reflection.SERVICE_NAME))
    answer = servicer.ServerReflectionInfo

    def info(
        requests: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterable[reflection_pb2.ServerReflectionResponse]:
        return answer(requests, context)

    # As in health.py: a bound method cannot have attributes.
    info.experimental_thread_pool = threads  # pyright: ignore[reportFunctionMemberAccess]
    servicer.ServerReflectionInfo = info  # pyright: ignore[reportAttributeAccessIssue]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    return threads
