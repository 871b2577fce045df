"""Checks of pages with axe-core, the accessibility engine of Chromium's and Firefox's own tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Page

__all__ = ["findings"]

# All of WCAG 2.2, levels A and AA, and the best practices that axe-core knows.
_RUN = """async () => {
    const {violations} = await axe.run(document, {resultTypes: ["violations"]});
    return violations.flatMap(({id, help, nodes}) =>
        nodes.map(node => `${id}: ${help}: ${node.target.join(" ")}: ${node.failureSummary}`));
}"""


async def findings(page: Page, node_modules: Path) -> list[str]:
    """Return what axe-core finds wrong with a page as it is shown now."""
    if not await page.evaluate("typeof globalThis.axe === 'object'"):
        # Not as a script of the page, which its content security policy would block.
        source = (node_modules / "axe-core" / "axe.min.js").read_text()
        await page.evaluate(source)
    return list(await page.evaluate(_RUN))
