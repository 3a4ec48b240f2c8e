"""The mixing node of the reference, and its configuration."""

from mixserve.node.config import MixDataSourcesConfig
from mixserve.node.mix_data_sources import MixDataSourcesNode
from mixserve.node.pending_rows import PendingRows

__all__ = ["MixDataSourcesConfig", "MixDataSourcesNode", "PendingRows"]
