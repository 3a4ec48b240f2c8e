"""The standard gRPC health service."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mixserve.serving.threads import CallThreads
from mixserve_client.wire import methods

SERVICE_NAME = health.SERVICE_NAME
_SERVICES = ("", methods.SERVICE_NAME)


class Health:
    """NOT_SERVING until `serving()` is called, and again after `stopping()`. Has its own threads."""

    def __init__(self, server: grpc.Server):
        self._threads = CallThreads(2, "mixserve-health")
        self._servicer = health.HealthServicer(experimental_thread_pool=self._threads)
        for service in _SERVICES:
            self._servicer.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        ask = self._servicer.Check

        def check(
            request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
        ) -> health_pb2.HealthCheckResponse:
            return ask(request, context)

        # gRPC's (experimental) way to give a method its own threads: a probe must not wait for threads that serve
        # batches. A bound method cannot have attributes, hence the function.
        check.experimental_thread_pool = self._threads  # pyright: ignore[reportFunctionMemberAccess]
        self._servicer.Check = check
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def serving(self) -> None:
        for service in _SERVICES:
            self._servicer.set(service, health_pb2.HealthCheckResponse.SERVING)

    def stopping(self) -> None:
        self._servicer.enter_graceful_shutdown()

    def close(self) -> None:
        self._threads.shutdown(wait=False)
