"""What a server offers beside its mixtures."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """`shared_memory` is the path of the Unix socket where memory is handed in, empty where none is taken."""

    shared_memory: str = ""
