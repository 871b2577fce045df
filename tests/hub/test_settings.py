"""Settings with which no hub could work are refused before a websocket opens a hub."""

import math
from typing import Any

import pytest

from kbridge.errors import SetupError
from kbridge.hub.settings import HubSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("journal_limit", 0),
        ("journal_limit", -1),
        ("history_limit", -1),
        ("journal_dir", "~no-such-user/journal"),
        ("journal_disk_limit", 0),
        ("journal_disk_total", -1),
        ("journal_disk_reserve", -0.01),
        ("journal_disk_reserve", 1.0),
        ("journal_disk_reserve", math.nan),
        ("rate_limit_window", 0.0),
        ("rate_limit_window", -1.0),
        ("rate_limit_window", math.nan),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SetupError, match=f"{name} must .*{value}"):
        HubSettings(**{name: value})


def test_the_smallest_settings_are_possible() -> None:
    made = HubSettings(journal_limit=1, history_limit=0, rate_limit_window=0.001)
    assert (made.journal_limit, made.history_limit) == (1, 0)


def test_the_disk_is_not_used_unless_a_directory_is_set() -> None:
    """Programs that embed kbridge choose the directory; the server's default is a trait."""
    assert HubSettings().journal_dir == ""
