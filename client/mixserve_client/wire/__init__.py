"""Pure functions between Python values and the bytes of `protos/mixserve/v1`; only they import generated code."""
