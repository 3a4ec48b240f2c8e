"""A server of several processes, as a client sees it: each answers in this process, at an address of its own."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from mixserve.servicer import Services
from mixserve_client.schema.server import ServerDescription
from mixserve_client.wire import methods
from mixserve_client.wire.server import encode_server
from tests.hostile import Answers, hostile_server


class Process(Answers):
    """One process of a server: it answers for `services`, tells of `workers`, and counts its streams."""

    def __init__(self, services: Services, workers: list[str]):
        super().__init__(self._answer)
        self.services, self.workers = services, workers
        self.streams = 0

    def _answer(self, method: str, request: bytes) -> Iterable[bytes]:
        if method == methods.GET_SERVER:
            return [encode_server(ServerDescription(workers=tuple(self.workers)))]
        if method in self.services.mix.streams:
            self.streams += 1
            return self.services.stream(method, request)
        return [self.services.handle(method, request)]


@contextmanager
def running(*processes: Process) -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(hostile_server(process)) for process in processes]


def port_of(address: str) -> str:
    return f":{address.rpartition(':')[2]}"
