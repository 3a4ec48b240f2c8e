"""The bases of data source modules: their surface, what holds their data, and their state."""

from mixserve.module.base import DataSourceModule, Statistics, StructuralConfig, kept_statistics

__all__ = ["DataSourceModule", "Statistics", "StructuralConfig", "kept_statistics"]
