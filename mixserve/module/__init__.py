"""The base classes of data source modules, the holders of their data, and their state."""

from mixserve.module.base import DataSourceModule, Statistics, StructuralConfig, kept_statistics

__all__ = ["DataSourceModule", "Statistics", "StructuralConfig", "kept_statistics"]
