"""How the peers that are slow with large messages get their batches: in pieces, which a trainer takes unjoined."""

_WHOLE_ROWS = 1024
_PIECE_ROWS = 128  # 1 MiB


def piece_rows(size: int) -> int:
    """How many records of a batch travel in one message: all of up to 1,024, otherwise 128."""
    return size if size <= _WHOLE_ROWS else _PIECE_ROWS
