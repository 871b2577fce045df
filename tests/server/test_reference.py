from pathlib import Path

import kbridge
from kbridge.server.reference import settings_page

PAGE = Path(kbridge.__file__).parents[1] / "docs" / "settings.md"
# Defined by jupyter_client, whose versions word them differently.
FOREIGN = ("| `default_kernel_name` |", "| `shared_context` |", "| `use_pending_kernels` |")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(FOREIGN)]


def test_every_setting_is_documented_as_it_is() -> None:
    """To mend it: python -m kbridge.server.reference > docs/settings.md."""
    assert lines(PAGE.read_text()) == lines(settings_page())


def test_every_row_has_a_meaning() -> None:
    rows = [line.split(" | ") for line in settings_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    for row in rows:
        assert len(row[2]) > 5, row
