"""Settings of Sphinx, which builds the documentation site.

The pages stay plain Markdown, which GitHub shows as well: the navigation and the docstrings of the
Python API are added while Sphinx reads the pages. The source directory is the root of the
repository, so that links such as `../README.md` lead to pages of the site.
"""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx

import kbridge

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from openapi_page import page as operations  # noqa: E402 - a file beside this one

project = "kbridge"
author = "the authors of kbridge"
release = version = kbridge.__version__
copyright = author  # noqa: A001 - Sphinx's name

root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/adr/*.md"]
# Directories with many files, which Sphinx would search.
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "client-js",
    "labextension",
    "kbridge",
    "tests",
    "**/node_modules",
]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 6
default_role = "code"  # docstrings write names in single backquotes, as in Markdown
napoleon_google_docstring = False
# Attributes and methods are also described by autodoc, and a name can be described only once.
napoleon_use_ivar = True
napoleon_custom_sections = [("Methods", "notes_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the sections of the docstrings name the types
suppress_warnings = ["ref.python"]  # two packages have a class of the same name

html_theme = "pydata_sphinx_theme"
html_title = "kbridge"
html_extra_path = ["root"]  # index.html, which leads to docs/index.html
templates_path = ["templates"]
html_sidebars = {"**": ["navigation.html"]}
html_show_sourcelink = False
html_theme_options = {
    "navbar_center": [],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}

NAVIGATION = {
    "Tutorial": ["Overview <../README>", "tutorial", "first-requests"],
    "How-to guides": [
        "installation", "jupyter", "jupyterlab", "kernel-gateway", "vscode", "jupyterhub", "proxy",
        "systemd", "docker", "kubernetes", "provisioners", "asgi", "agents", "reaching-kernels",
        "slurm", "surviving", "replicas", "page", "console", "monitoring", "../CONTRIBUTING",
    ],
    "Reference": [
        "settings", "rest", "openapi", "websocket", "api", "docstrings", "client", "client-js",
        "errors", "faults", "stability", "../CHANGELOG",
    ],
    "Explanation": [
        "comparison", "performance", "scaling", "architecture", "journal", "adr/index",
        "threat-model", "peer-suite", "peer-suite-connect", "../SECURITY", "../CODE_OF_CONDUCT",
    ],
}  # fmt: skip


def toctrees() -> str:
    """Return the navigation as directives that are not shown on the page itself."""
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
        for caption, pages in NAVIGATION.items()
    )


def decisions() -> str:
    """Return the navigation below the list of decisions."""
    names = sorted(path.stem for path in (ROOT / "docs" / "adr").glob("0*.md"))
    return "\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"


def docstrings() -> str:
    """Return directives that show the docstrings of the public names."""
    listed = (ROOT / "docs" / "api.md").read_text()
    parts = []
    shown: dict[int, str] = {}  # names of objects, which may have several names
    for package in re.findall(r"^## (kbridge[.\w]*)$", listed, flags=re.MULTILINE):
        module = importlib.import_module(package)
        lines = [f".. py:module:: {package}", ""]
        values = {name: getattr(module, name) for name in module.__all__ if name[:2] != "_j"}
        for name in sorted(values, key=lambda n: (getattr(values[n], "__name__", n) != n, n)):
            value = values[name]
            if isinstance(value, ModuleType) or shown.get(id(value)) == name:
                continue
            if id(value) in shown:
                lines += [f".. py:data:: {package}.{name}", ""]
                lines += [f"   Another name of `{shown[id(value)]}`.", ""]
            else:
                if callable(value):
                    shown[id(value)] = name
                lines += directive(f"{package}.{name}", value)
        parts.append(f"\n## {package}\n\n```{{eval-rst}}\n" + "\n".join(lines) + "\n```\n")
    return "".join(parts)


def directive(name: str, value: object) -> list[str]:
    """Return the lines of the directive for one public name."""
    if isinstance(value, type):
        return [f".. autoclass:: {name}", "   :members:", "   :show-inheritance:", ""]
    if callable(value):
        return [f".. autofunction:: {name}", ""]
    if type(value).__module__ == "builtins":  # would show the docstring of its type
        return [f".. py:data:: {name}", ""]
    return [f".. autodata:: {name}", "   :no-value:", ""]


ADDED = {
    "docs/index": toctrees,
    "docs/adr/index": decisions,
    "docs/docstrings": docstrings,
    "docs/openapi": operations,
}


def without_folders(page: str, text: str) -> str:
    """Replace links to directories, which the site does not have, with their text."""
    folder = (ROOT / page).parent

    def replace(link: re.Match[str]) -> str:
        return link[1] if (folder / link[2]).is_dir() else link[0]

    return re.sub(r"\[([^\[\]]+)\]\(([^\s():#]+)\)", replace, text)


def adapt(_app: Sphinx, page: str, text: list[str]) -> None:
    """Change a page for the site; `text` has the source as its only item."""
    text[0] = without_folders(page, text[0])
    if page in ADDED:
        text[0] += ADDED[page]()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the handlers of events; Sphinx calls this."""
    app.connect("source-read", adapt)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
