"""Valid inputs -> damaged ones, by a seeded generator: without a coverage-guided fuzzer, and for live servers."""

import random
from collections.abc import Sequence

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
_MOST_CHANGES = 4
_LARGE = 0.002  # the share of inputs in which a piece comes thousands of times


def mutate(choice: random.Random, seeds: Sequence[bytes], largest: int) -> bytes:
    """A seed with a few changes, or now and then bytes without meaning."""
    if choice.random() < 0.05:
        return choice.randbytes(choice.randrange(min(largest, 64)))
    data = bytearray(choice.choice(seeds))
    for _ in range(choice.randint(1, _MOST_CHANGES)):
        _change(choice, data, seeds)
    if choice.random() < _LARGE:
        at = choice.randrange(len(data) + 1)
        piece = data[at : at + choice.randint(1, 24)] or b"\0"
        data[at:at] = piece * (int(largest ** choice.uniform(0.5, 1)) // len(piece))
    return bytes(data[:largest])


def _change(choice: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = choice.randrange(len(data) + 1)
    match choice.randrange(9):
        case 0 | 1 if data:
            data[at % len(data)] ^= 1 << choice.randrange(8)
        case 2 if data:
            data[at % len(data)] = choice.randrange(256)
        case 3:
            del data[at : at + choice.randint(1, 8)]
        case 4:
            del data[at:]
        case 5:  # a piece again
            stop = min(len(data), at + choice.randint(1, 32))
            data[at:at] = data[at:stop] * choice.choice((1, 1, 2, 50))
        case 6:
            other = choice.choice(seeds)
            begin = choice.randrange(len(other) + 1)
            data[at:at] = other[begin : begin + choice.randint(1, 64)]
        case 7:
            size = choice.choice((1, 2, 4, 8))
            number = choice.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, choice.choice(("little", "big")))
        case _:
            data[at:at] = varint(choice.choice(_NUMBERS))


def varint(value: int) -> bytes:
    """As protobuf writes it."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
