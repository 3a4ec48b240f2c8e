"""What the attacked server has; apart from it, so that an attack begins without loading the server's libraries."""

ROW_BYTES = 16 << 10
ROWS = 4096
# The mixtures. TRAIN is that of the honest reader, a record of SLOW takes 50 ms, and those of HANGS never come.
TRAIN, SLOW, HANGS = "train", "slow", "hangs"
