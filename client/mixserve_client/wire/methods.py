"""The paths of the RPC methods, from the descriptors: both ends register and call methods by path."""

from typing import Any

from mixserve_client.wire._generated import mix_pb2, state_pb2

_MIX: Any = mix_pb2.DESCRIPTOR.services_by_name["MixService"]
_STATE: Any = state_pb2.DESCRIPTOR.services_by_name["StateService"]
SERVICE_NAME: str = _MIX.full_name
STATE_SERVICE_NAME: str = _STATE.full_name


def _path(service: Any, method: str) -> str:
    return f"/{service.full_name}/{service.methods_by_name[method].name}"


LIST_MIXTURES = _path(_MIX, "ListMixtures")
GET_MIXTURE = _path(_MIX, "GetMixture")
GET_BATCH_AT = _path(_MIX, "GetBatchAt")
STREAM_BATCHES = _path(_MIX, "StreamBatches")
STREAM_POSITIONS = _path(_MIX, "StreamPositions")
DEFINE_SCHEDULE = _path(_MIX, "DefineSchedule")
GET_SOURCE = _path(_MIX, "GetSource")
TAKE_RECORDS = _path(_MIX, "TakeRecords")
GET_SERVER = _path(_MIX, "GetServer")
GET_STATS = _path(_MIX, "GetStats")

OPEN_SESSION = _path(_STATE, "OpenSession")
RENEW_SESSIONS = _path(_STATE, "RenewSessions")
RELEASE_SESSIONS = _path(_STATE, "ReleaseSessions")
LIST_SESSIONS = _path(_STATE, "ListSessions")
CALL_SESSION = _path(_STATE, "CallSession")
