"""Descriptions of servers: what they offer in addition to plain calls."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """`shared_memory` is the path of the Unix socket that accepts slots, empty if the server has none."""

    shared_memory: str = ""
