from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import store_samples

from store.column import Column


@pytest.fixture
def filled(tmp_path: Path) -> Column:
    """A complete int8 column over a complete view set, in ``tmp_path / 'store'``."""
    return store_samples.fill(tmp_path / "store")
