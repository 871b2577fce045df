"""The list of close reasons, which other languages copy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kbridge.wire.closing import (
    KERNEL_ENDED,
    SERVER_RESTARTS,
    SERVICE_RESTART,
    ends_kernel,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", ["client-js/kbridge.js", "labextension/src/replay.ts"])
def test_clients_in_other_languages_have_the_same_list(path: str) -> None:
    source = (ROOT / path).read_text()
    [reasons] = re.findall(r"^const KERNEL_ENDED = (\[.*\]);$", source, re.MULTILINE)
    assert sorted(json.loads(reasons.replace("'", '"'))) == sorted(KERNEL_ENDED)
    assert "KERNEL_ENDED.includes(" in source


def test_the_page_of_close_codes_names_the_reasons() -> None:
    page = (ROOT / "docs" / "websocket.md").read_text()
    [row] = re.findall(rf"^\| {SERVICE_RESTART} \|.*$", page, re.MULTILINE)
    assert set(re.findall(r"reason `([^`]*)`|with `([^`]*)`", row)) == {
        *((reason, "") for reason in KERNEL_ENDED),
        ("", SERVER_RESTARTS),
    }


@pytest.mark.parametrize("reason", ["", SERVER_RESTARTS, "the kernel is gone", "a new reason"])
def test_an_unknown_reason_does_not_end_a_kernel(reason: str) -> None:
    assert not ends_kernel(SERVICE_RESTART, reason)
    for known in KERNEL_ENDED:
        assert ends_kernel(SERVICE_RESTART, known)
        assert not ends_kernel(None, known)
