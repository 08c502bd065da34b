"""What the tests of the configuration share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.configurations import Writer


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    return Writer(tmp_path)
