"""The store of journals: settings, recovery, limits, failures."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from kbridge.storage.store import StoreSettings


def test_the_settings_of_a_store_do_not_change() -> None:
    settings = StoreSettings(Path("journals"), 1 << 30, 8 << 30, 0.05)
    with pytest.raises(FrozenInstanceError):
        settings.limit = 0
