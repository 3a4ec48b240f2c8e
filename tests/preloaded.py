"""Imports for the processes that tests fork: done once per run of tests."""

import hypothesis
import pytest

import mixserve.build
import mixserve.cli.main
import mixserve.cli.serve
import mixserve.config
import mixserve.local
import mixserve.serving
import mixserve_client

__all__ = ["hypothesis", "mixserve", "mixserve_client", "pytest"]
