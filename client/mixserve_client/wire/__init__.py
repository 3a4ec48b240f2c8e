"""Pure functions between Python values and the bytes of `protos/mixserve/v1`; the only importer of generated code."""
