"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_folders import BUNDLED, bundle_of


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """The bundle of tests/goldens: every part of the architecture, a few hundred thousand random weights."""
    return bundle_of(BUNDLED)
