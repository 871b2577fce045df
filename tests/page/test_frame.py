"""The policy of the document for HTML of kernels."""

import base64
import hashlib
from pathlib import Path

import pytest

from kbridge.page.frame import NAME, frame_policy

STATIC = Path(__file__).parents[2] / "kbridge" / "page" / "static"
DOCUMENT = (STATIC / NAME).read_text()


def directives() -> dict[str, list[str]]:
    parts = [part.split() for part in frame_policy(DOCUMENT).split(";")]
    return {name: values for name, *values in parts}


def test_only_its_own_script_runs() -> None:
    script = DOCUMENT[DOCUMENT.index("<script>") + 8 : DOCUMENT.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert directives()["script-src"] == [f"'sha256-{digest}'"]


def test_a_document_with_another_script_is_refused() -> None:
    with pytest.raises(ValueError, match="too many values"):
        frame_policy(f"{DOCUMENT}<script></script>")


def test_it_has_no_origin_and_loads_nothing() -> None:
    found = directives()
    assert found["default-src"] == ["'none'"]
    assert found["form-action"] == found["base-uri"] == ["'none'"]
    assert "allow-same-origin" not in found["sandbox"]
    assert not {"allow-forms", "allow-top-navigation", "allow-modals"} & set(found["sandbox"])
    sources = {source for name, values in found.items() if name[-4:] == "-src" for source in values}
    assert not {source for source in sources if "self" in source or "http" in source}
