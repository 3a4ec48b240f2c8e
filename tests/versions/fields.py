"""The generated code -> each field and method of the wire: what a later version must still have.

python tests/versions/fields.py >tests/golden/wire-fields.json    # at a release
"""

import json
from collections.abc import Iterable

from mixserve_client.wire._generated import mix_pb2, state_pb2


def wire_fields() -> dict[str, str]:
    """Names of fields, values of enums and methods, with what others rely on: number and type, or request and reply."""
    found = dict[str, str]()
    for file in (mix_pb2.DESCRIPTOR, state_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            for method in service.methods:
                stream = "stream " if method.server_streaming else ""
                found[method.full_name] = f"{method.input_type.full_name} -> {stream}{method.output_type.full_name}"
        found |= _of_messages(file.message_types_by_name.values())
        found |= _of_enums(file.enum_types_by_name.values())
    return dict(sorted(found.items()))


def _of_messages(messages: Iterable) -> dict[str, str]:
    found = dict[str, str]()
    for message in messages:
        for field in message.fields:
            of = field.message_type or field.enum_type
            kind = of.full_name if of else f"type {field.type}"
            found[field.full_name] = f"{field.number}: {'repeated ' if field.is_repeated else ''}{kind}"
        found |= _of_messages(message.nested_types) | _of_enums(message.enum_types)
    return found


def _of_enums(enums: Iterable) -> dict[str, str]:
    return {f"{enum.full_name}.{value.name}": f"{value.number}" for enum in enums for value in enum.values}


if __name__ == "__main__":
    print(json.dumps(wire_fields(), indent=0))
