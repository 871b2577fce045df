"""The policy of the document in which the console shows HTML of kernels.

A document without an address (`srcdoc`) would have the policy of the page, which permits no styles
in HTML. `console/frame.html` is therefore served, with a policy that makes it harmless:

- `sandbox` without `allow-same-origin` gives it a separate origin, also when it is opened in a
  tab. It has no cookies of the server, no storage, and no access to the page.
- `default-src 'none'` and no `connect-src`: it loads nothing, from this server or another one.
- Of all scripts, only its own one runs, which is named by its hash. Scripts, handlers and
  `javascript:` links in the HTML of a kernel do not run.
- It sends no forms. Links open a new tab, and only because the person has clicked.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

__all__ = ["NAME", "frame_policy"]

NAME: Final = "console/frame.html"


def frame_policy(document: str) -> str:
    """Return the content security policy of `frame.html`.

    Parameters
    ----------
    document : str
        The text of the file, which has one script.
    """
    _, script = document.split("<script>")
    script, _ = script.split("</script>")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox; default-src 'none'; "
        f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; media-src data: blob:; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'self'"
    )
