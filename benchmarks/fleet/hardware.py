"""What a replica and a trainer's host have: cores, memory's speed, network cards. Rates in bytes per second."""

from dataclasses import dataclass

GBIT = 1e9 / 8
# Of a card's rate, what is left for data after headers of Ethernet, IP and TCP, with packets of 1,500 bytes.
_GOODPUT = 0.94
# A byte of a reply passes through memory: out of the source and into the message, out of it and into the kernel, and
# out of that to the card.
MEMORY_PASSES = 5


@dataclass(frozen=True)
class Machine:
    """A replica's machine."""

    cores: int = 16
    processes: int = 4  # of its server
    nic_gbit: float = 100.0
    memory_s: float = 200e9  # bytes per second, reads and writes together

    @property
    def nic_s(self) -> float:
        """Bytes per second."""
        return self.nic_gbit * GBIT * _GOODPUT


@dataclass(frozen=True)
class Host:
    """A trainer's host: so many accelerators share a card."""

    accelerators: int = 8
    nic_gbit: float = 100.0

    @property
    def nic_s(self) -> float:
        """Bytes per second."""
        return self.nic_gbit * GBIT * _GOODPUT
