"""The lowest versions that pyproject.toml allows, as pip's requirements (`make test-floors`).

`python tests/support/floors.py` prints them: `name==bound` for each requirement of kbridge and of
its extras `jupyter`, `kernel`, `postgresql` and `test`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

__all__ = ["EXTRAS", "floors"]

EXTRAS = ("jupyter", "kernel", "postgresql", "test")
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[\w,-]+\])?>=(?P<bound>[\w.]+)")
_OURSELVES = "kbridge["
# The tests that use them are not run. All but the first need newer versions of jupyter_client and
# traitlets than kbridge.
_LEFT_OUT = {"gateway-provisioners", "jupyter-kernel-client", "jupyter-kernel-gateway"}


def floors(pyproject: str) -> list[str]:
    """Return the requirements with each lower bound as the only version.

    Parameters
    ----------
    pyproject : str
        The text of pyproject.toml.

    Raises
    ------
    ValueError
        If a requirement has no lower bound.
    """
    project = tomllib.loads(pyproject)["project"]
    requirements = [*project["dependencies"]]
    for extra in EXTRAS:
        requirements += project["optional-dependencies"][extra]
    found = set()
    for requirement in requirements:
        if requirement.startswith(_OURSELVES):
            continue
        match = _REQUIREMENT.match(requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        if match["name"].replace("_", "-").lower() not in _LEFT_OUT:
            found.add(f"{match['name']}{match['extras'] or ''}=={match['bound']}")
    return sorted(found)


if __name__ == "__main__":
    path = Path(__file__).parents[2] / "pyproject.toml"
    sys.stdout.write("\n".join(floors(path.read_text(encoding="utf-8"))) + "\n")
