"""Ask for each address on other hosts that a page names; exit with 1 if one is gone.

`make links` runs it. CI does not, because other hosts may be down.
"""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urldefrag, urlsplit
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\]\((https?://[^)\s]+)\)")
_TIMEOUT = 20.0
# Hosts of examples (RFC 2606), and of servers on the reader's machine.
_EXAMPLES = re.compile(r"localhost|127\.0\.0\.1|(?:.*\.)?example(?:\.(?:com|net|org))?")


def links(pages: list[Path]) -> dict[str, str]:
    """Return the addresses on other hosts, each with the first page that names it."""
    found: dict[str, str] = {}
    for page in pages:
        for link in _LINK.findall(page.read_text()):
            address = urldefrag(link).url
            if not _EXAMPLES.fullmatch(urlsplit(address).hostname or ""):
                found.setdefault(address, page.name)
    return found


def problem(address: str) -> str:
    """Return why an address cannot be read; an empty string if it can."""
    request = Request(address, headers={"User-Agent": "kbridge-links"})
    try:
        with urlopen(request, timeout=_TIMEOUT):
            return ""
    except HTTPError as error:
        with error:
            # Some hosts refuse programs (403) or limit their requests (429).
            return "" if error.code in {403, 429} else str(error)
    except OSError as error:
        return str(error)


def main() -> int:
    """Print each address that cannot be read, with its page."""
    found = links([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    with ThreadPoolExecutor(8) as pool:
        problems = dict(zip(found, pool.map(problem, found), strict=True))
    for address, reason in problems.items():
        if reason:
            print(f"{found[address]}: {address}: {reason}")
    failed = sum(map(bool, problems.values()))
    print(f"{len(found)} addresses, {failed} cannot be read")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
