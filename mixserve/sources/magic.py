"""What files of known formats begin with."""

import numpy as np

ARRAY_RECORD = bytes.fromhex("83af70d10d884a3f")  # and Riegeli, of which it is one
ARROW = b"ARROW1\0\0"
GIT_LFS = b"version https://git-lfs"
GZIP = b"\x1f\x8b"
HDF5 = b"\x89HDF\r\n\x1a\n"
MEGATRON_INDEX = b"MMIDIDX\0\0"
NPY = b"\x93NUMPY"
PARQUET = b"PAR1"
XZ = b"\xfd7zXZ\0"
ZIP = b"PK\x03\x04"
ZSTD = b"\x28\xb5\x2f\xfd"

# The first number (little-endian, 32 bits) of files of ids that llm.c writes, and the dtype of their ids.
LLM_C_DTYPES = {20240520: np.dtype(np.uint16), 20240801: np.dtype(np.uint32)}
