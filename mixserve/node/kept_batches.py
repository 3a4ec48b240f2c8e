"""The former name of `mixserve.node.batch_cache`, under which nodes that earlier versions pickled look for it."""

from mixserve.node.batch_cache import BatchCache as KeptBatches

__all__ = ["KeptBatches"]
