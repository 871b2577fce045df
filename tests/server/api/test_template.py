"""The frame of the server's pages."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from kbridge.server.api.template import POLICY, document


class Page(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_policy_allows_the_style_of_the_page_and_no_scripts() -> None:
    style = re.search(r"<style>(.*?)</style>", document("a", "b", "/"), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in POLICY
    assert "default-src 'none'" in POLICY
    assert "script-src" not in POLICY


def test_the_title_is_escaped_and_the_body_is_not() -> None:
    text = document("<script>", "<p>body</p>", "/")
    assert "<title>&lt;script&gt;</title>" in text
    assert "<body><p>body</p></body>" in text


def test_the_icon_is_below_the_base_url() -> None:
    links = [attrs for tag, attrs in Page(document("a", "", '/a"b/')).tags if tag == "link"]
    assert links == [{"rel": "icon", "href": '/a"b/favicon.ico'}]
