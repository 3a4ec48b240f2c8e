"""Written by `make protos` from protos/mixserve/v1; never edited."""
