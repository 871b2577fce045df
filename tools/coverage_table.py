"""Print the share of lines that tests ran, by package, from the data of `coverage run`.

`make coverage` runs the tests and then this script.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kbridge"


def table(statements: Counter[str], missing: Counter[str]) -> str:
    """Return one line for each package, and one for all of them."""
    lines = [f"{'package':<12} {'statements':>10} {'missed':>7} {'run':>7}"]
    rows = [(name, statements[name], missing[name]) for name in sorted(statements)]
    for name, count, missed in [*rows, ("all", statements.total(), missing.total())]:
        share = 100.0 * (count - missed) / max(count, 1)
        lines.append(f"{name:<12} {count:>10} {missed:>7} {share:>6.1f} %")
    return "\n".join(lines)


def main() -> int:
    """Read the data and print the table."""
    coverage = Coverage()
    coverage.load()
    statements: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        _, lines, _, missed, _ = coverage.analysis2(str(path))
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        name = name if (PACKAGE / name).is_dir() else "(root)"
        statements[name] += len(lines)
        missing[name] += len(missed)
    print(table(statements, missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
