"""Put the libraries of the pages into the tree, from npm at pinned versions.

`python tools/vendor.py` writes `kbridge/page/static/vendor/`, which is under version control, so an
installation needs neither npm nor a network. `--check` compares instead, and exits with 1 if a file
differs. `make vendor` runs it.

To update a library: change its version and the integrity (`npm view NAME@VERSION dist.integrity`).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

VENDOR = Path(__file__).resolve().parent.parent / "kbridge" / "page" / "static" / "vendor"


class Library(NamedTuple):
    """One file of a package, as an ES module, and its licence."""

    name: str
    version: str
    integrity: str
    file: str
    licence: str
    footer: str = ""
    """Makes a module of a script that defines a variable."""


LIBRARIES = (
    Library(
        name="marked",
        version="18.2.1",
        integrity=(
            "sha512-ii4bxCTCqqwpT86XZWgJNs+ZnAIZksmLGYMViWA7PDIXYIeNo1x6cDdX3JOip9NM/"
            "cI6p8z57FxliACboTruMA=="
        ),
        file="lib/marked.esm.js",
        licence="LICENSE",
    ),
    Library(
        name="temml",
        version="0.13.5",
        integrity=(
            "sha512-aPkDDgunanpLNL0ql32HbolqLep+w8DRcVXRql7rWrMt/PhczdLgL4UBYYVU3BYjCNjkGq4EqwIic"
            "u/zWr1iOg=="
        ),
        file="dist/temml.min.js",
        licence="LICENSE",
        footer="\nexport default temml;\n",
    ),
)


def download(library: Library, folder: Path) -> Path:
    """Return the package as npm delivers it, after a comparison with the pinned integrity."""
    command = ["npm", "pack", "--silent", f"{library.name}@{library.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    package = folder / done.stdout.strip().splitlines()[-1]
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != library.integrity:
        raise SystemExit(f"{library.name} {library.version}: the integrity is sha512-{digest}")
    return package


def files_of(library: Library, package: Path) -> dict[str, bytes]:
    """Return the files for the tree, by name."""
    with tarfile.open(package) as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(f"package/{name}")
            assert member is not None, name
            return member.read()

        code = read(library.file).decode()
        licence = read(library.licence)
    lines = [line for line in code.split("\n") if not line.startswith("//# sourceMappingURL")]
    head = f"// {library.name} {library.version}, from npm; see {library.name}.LICENSE.txt\n"
    return {
        f"{library.name}.js": (
            head + "\n".join(lines).rstrip("\n") + "\n" + library.footer
        ).encode(),
        f"{library.name}.LICENSE.txt": licence,
    }


def main() -> int:
    """Write or compare the files; return the exit code."""
    parser = argparse.ArgumentParser(description="the libraries of the pages")
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    wanted: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for library in LIBRARIES:
            wanted |= files_of(library, download(library, Path(folder)))
    if check:
        present = {path.name: path.read_bytes() for path in VENDOR.iterdir()}
        differing = {name for name in wanted | present if wanted.get(name) != present.get(name)}
        for name in sorted(differing):
            print(f"{name} is not that of npm")
        return 1 if differing else 0
    VENDOR.mkdir(exist_ok=True)
    for name, content in wanted.items():
        (VENDOR / name).write_bytes(content)
        print(f"{len(content):9,} bytes  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
