"""The paths of the RPC methods, read from the descriptor: both ends register and call methods by path."""

from mixserve_client.wire._generated import mix_pb2

SERVICE_NAME: str = mix_pb2.DESCRIPTOR.services_by_name["MixService"].full_name


def _path(method: str) -> str:
    descriptor = mix_pb2.DESCRIPTOR.services_by_name["MixService"].methods_by_name[method]
    return f"/{SERVICE_NAME}/{descriptor.name}"


LIST_MIXTURES = _path("ListMixtures")
GET_MIXTURE = _path("GetMixture")
GET_BATCH_AT = _path("GetBatchAt")
STREAM_BATCHES = _path("StreamBatches")
DEFINE_SCHEDULE = _path("DefineSchedule")
GET_SERVER = _path("GetServer")
