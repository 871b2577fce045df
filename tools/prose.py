"""Check the English of the project: docstrings, comments, messages and Markdown.

`python tools/prose.py` reads the whole tree and prints each sentence that uses a construction of
`RULES`; it exits with 1 if there are any. `make check` runs it.

- Paths in `tools/prose_unclean.txt` are not checked yet. The check fails if such a path has become
  clean, so that the list only shrinks; `--update` removes the clean paths from it.
- `prose: allow RULE: REASON` in a comment on the same line, or on the line above, permits one
  sentence. In Markdown the comment is `<!-- prose: allow RULE: REASON -->` above the paragraph.
- `--sample N --seed S` prints N random texts, a quarter of each kind, for a reader to judge.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import random
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
UNCLEAN = Path(__file__).with_name("prose_unclean.txt")
FOLDERS = ("kbridge", "tests", "benchmarks", "examples", "tools")
# Files whose comments begin with `#`, besides Python.
HASH_COMMENTS = ("Makefile", "Dockerfile", "pyproject.toml", ".ci/run", "noxfile.py")
GENERATED = {"docs/settings.md"}  # its text comes from help strings, which are checked

DOCSTRING, COMMENT, MESSAGE, PAGE = KINDS = ("docstring", "comment", "message", "page")


class Text(NamedTuple):
    """One piece of prose: a paragraph, a list item, a table cell, a comment or a message."""

    path: str
    line: int
    kind: str
    text: str
    allowed: frozenset[str] = frozenset()
    first: bool = False
    """True for the summary of a docstring."""


class Rule(NamedTuple):
    """A construction that the project does not use."""

    name: str
    pattern: re.Pattern[str]
    advice: str
    kinds: tuple[str, ...] = KINDS
    summary: bool = False
    """True if the rule applies to the summaries of docstrings only."""


class Finding(NamedTuple):
    """A sentence that breaks a rule."""

    text: Text
    rule: Rule
    sentence: str

    def __str__(self) -> str:
        where = f"{self.text.path}:{self.text.line}"
        return f"{where}: {self.rule.name}: {self.sentence!r} ({self.rule.advice})"


# Words before "what" or "who" that make the clause an indirect question, which is plain English.
_ASKING = (
    "say|says|said|saying|see|sees|seen|show|shows|shown|showing|explain|explains|describe"
    "|describes|know|knows|known|knowing|knew|tell|tells|told|telling|decide|decides|deciding"
    "|about|on|ask|asks|asked|asking|list|lists|define|defines|determine|determines|exactly"
    "|check|checks|checking|record|records|recorded|learn|learns|learned|matter|wonder|guess"
    "|remember|remembers|find|finds|out|print|prints|report|reports|state|states|understand|by"
)
_VERBS = (
    "is|are|was|were|came|comes|come|went|goes|has|had|have|passes|passed|lies|lay|stands|stood"
    "|remains|waits|waited|follows|followed|arrives|arrived|carries|belongs|fits|fails|failed"
    "|runs|ran|matches|reads|reaches|breaks|holds|held|survives|counts|costs|could|can|cannot"
    "|may|must|will|would|should|does|did|takes|needs|makes|made|speaks|stays|stayed|becomes"
    "|became|changed|outlives|touches|wakes|owns|uses|writes|wrote|listens|differs|depends|lacks"
)
_MOMENT = r"(?:second|minute|hour|day|millisecond)"


def _rule(name: str, pattern: str, advice: str, *kinds: str, summary: bool = False) -> Rule:
    return Rule(name, re.compile(pattern, re.IGNORECASE), advice, kinds or KINDS, summary)


RULES = (
    _rule(
        "headless",
        rf"(?<![\w-])(?!(?:{_ASKING})\b)[\w'-]+[,;:]? (?:what|whatever) (?:{_VERBS})\b"
        r"(?! the matter)(?![^.]*\?$)",
        "name the thing instead of `what came`",
    ),
    _rule(
        "headless-who",
        r"\b(?:to|by|for|from|with|and|or|that|than|if|while|unless|whether|because|but|of) who\b"
        r"|\bwho(?:so|m)?ever\b",
        "name the person or program instead of `who lags`",
    ),
    _rule(
        "question",
        r"^(?:who|whom|whose|what|whatever|whether|how (?!to\b))(?![^.]*\?$)\b.*",
        "begin with the subject or a verb; for a flag, write `True if ...`",
    ),
    _rule(
        "question-summary",
        r"^(?:where|when|which|why|up to where|by which|from where)\b[^,]*$",
        "begin with a verb: `Return the place after ...`",
        DOCSTRING,
        summary=True,
    ),
    _rule(
        "is-no",
        r"(?<!there )\b(?:is|are|was|were) no"
        r" (?!longer\b|more\b|less\b|fewer\b|sooner\b|\w+er than\b)\w",
        "write `is not an X`",
    ),
    _rule("further", r"\ba further\b", "write `another`"),
    _rule("any-more", r"\bany ?more(?=[.,;:)]|$)", "write `no longer`"),
    _rule("likewise", r"\blikewise\b", "say which of the two is meant, or `also`"),
    _rule("mend", r"\bmend(?:s|ed|ing)?\b", "write `fix` or `repair`"),
    _rule("is-to-be", r"\b(?:is|are|was|were)(?: not)? to be\b", "write `must be` or `will be`"),
    _rule(
        "of-own",
        r"\bof (?:ours|theirs|mine|yours)\b|\bof (?:its|their|his|her|our|my|your) own"
        r"(?=[.,;:)]|$| (?:and|or|that|which|in|on|for|with|under|at|behind|beside|so|as|to)\b)",
        "write `its own X`, `a separate X` or `our X`",
    ),
    _rule(
        "in-place-of",
        r"\bin (?:(?:the |an? )?[\w-]+(?:'s|s')|its|their|our) (?:place|stead)\b",
        "write `instead of the X` or `instead`",
    ),
    _rule(
        "per-unit",
        rf"(?:\b(?:messages|bytes|lines|frames|times|once|twice|requests|writes|calls|ticks|cycles"
        rf"|deliveries|connections|pings|bits|characters|tokens|attempts|us|ms|\w?B|\w?iB)|\d)"
        rf" an? {_MOMENT}\b(?! time\b)"
        r"|\b(?:CPU|memory|us|ms|bytes|once|one hub|one slot|time|future|task) a"
        r" (?:message|frame|delivery|hub|client|websocket|round|read|connection|MB|turn|cell)\b"
        r"|\b(?:test file|binary frame|request) a (?:module|message|connection)\b",
        "write `per`: CPU per message, 20 lines per minute",
    ),
    _rule("inversion", r"^(?:nor|so (?:is|are|do|does|did|has|have|must|may))\b", "subject first"),
    _rule(
        "archaic",
        # prose: allow archaic: the list of the words
        r"\b(?:anew|afresh|in the midst|for want of|whence|hitherto)\b",
        "write `again`, `during`, `without` or `from there`",
    ),
)
_NAMES = {rule.name for rule in RULES}

# -- reading -------------------------------------------------------------------------------------

_ALLOW = re.compile(r"prose: allow ([\w-]+): \S")
_CODE_SPAN = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
_NOT_PROSE = re.compile(r"^(?:!|-\*-|noqa|type:|pragma|mypy:|ruff:|fmt:|prose:|[-=#~* ]*$|-- )")
_TRAILING = re.compile(r"\s*#?\s*(?:noqa|type: ignore|pragma)\b.*")
_LOGGERS = {"debug", "info", "warning", "error", "critical", "exception", "log", "warn", "exit"}


def plain(text: str) -> str:
    """Replace code spans and links by words, and white space by single spaces."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = _CODE_SPAN.sub("CODE", text).replace("**", "")
    return re.sub(r"\s+", " ", text).strip()


def sentences(text: str) -> list[str]:
    """Split a paragraph; abbreviations such as "e.g." do not end a sentence."""
    return re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)[)\"]? (?=[\"(]?[A-Z])", text)


def python_texts(path: str, source: str) -> Iterator[Text]:
    """Give the docstrings, comments and messages of a module."""
    allowed = _allowed(source)
    tree = ast.parse(source)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and _is_string(node.value):
            docstrings.add(id(node.value))
            assert isinstance(node.value, ast.Constant)
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            permitted = frozenset[str]().union(*(allowed.get(n, ()) for n in lines))
            for number, paragraph in enumerate(_docstring(str(node.value.value))):
                yield Text(path, node.lineno, DOCSTRING, paragraph, permitted, number == 0)
    yield from _comments(path, source, allowed)
    for string in _messages(tree, docstrings, strict=not path.startswith("tests/")):
        text = _string(string)
        if len(re.findall(r"[A-Za-z]{2,}", text)) >= 4 and not re.search(r"</|\(\?|\\[bsw]", text):
            lines = range(string.lineno, (string.end_lineno or string.lineno) + 1)
            permitted = frozenset[str]().union(*(allowed.get(n, ()) for n in lines))
            for part in re.split(r"\n\s*\n", text):
                yield Text(path, string.lineno, MESSAGE, plain(part), permitted)


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _docstring(raw: str) -> Iterator[str]:
    """Give the paragraphs, list items and descriptions of a docstring in NumPy style."""
    lines = inspect.cleandoc(raw).splitlines()
    block: list[str] = []
    section = code = False
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        code = code and (not line or line.startswith(" "))
        heading = bool(re.match(r"^-{3,}$", following)) and bool(line)
        term = section and bool(line) and not line.startswith(" ")
        item = re.match(r"^\s*(?:[-*]|\d+\.) ", line)
        if heading or term or item or not line or code or re.match(r"^\s*(?:>>>|-{3,}$)", line):
            if block:
                yield plain(" ".join(block))
            block = [line[item.end() :]] if item and not code else []
            section = line not in ("Notes", "Examples") if heading else section
        else:
            block.append(line.strip())
        code = code or line.endswith("::")
    if block:
        yield plain(" ".join(block))


def _comments(path: str, source: str, allowed: dict[int, set[str]]) -> Iterator[Text]:
    block: list[str] = []
    start = last = 0
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [
        (token.start[0], token.string.lstrip("#").strip(), token.line.lstrip().startswith("#"))
        for token in tokens
        if token.type == tokenize.COMMENT
    ]
    for line, text, alone in [*found, (-1, "", False)]:
        if block and not (alone and line == last + 1):
            yield from _comment(path, start, block, allowed)
            block = []
        if not block:
            start = line
        if line > 0:
            block.append(text)
            last = line if alone else -1


def _comment(
    path: str, start: int, block: Sequence[str], allowed: dict[int, set[str]]
) -> Iterator[Text]:
    lines = [_TRAILING.sub("", line) for line in block if not _NOT_PROSE.match(line)]
    text = plain(" ".join(lines))
    if len(re.findall(r"[A-Za-z]{2,}", text)) >= 2:
        permitted = frozenset[str]().union(*(allowed.get(start + i, ()) for i in range(len(block))))
        yield Text(path, start, COMMENT, text, permitted)


def _messages(tree: ast.AST, docstrings: set[int], *, strict: bool) -> Iterator[ast.expr]:
    """Give the strings that people read: all of the product's, in tests those of failures."""
    if strict:
        inside = {
            id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr) or (_is_string(node) and id(node) not in inside):
                assert isinstance(node, ast.expr)
                if id(node) not in docstrings:
                    yield node
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from (a for a in node.exc.args if _is_string(a) or isinstance(a, ast.JoinedStr))
        elif isinstance(node, ast.Assert) and node.msg is not None:
            if _is_string(node.msg) or isinstance(node.msg, ast.JoinedStr):
                yield node.msg
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", None) in _LOGGERS:
            yield from (a for a in node.args if _is_string(a) or isinstance(a, ast.JoinedStr))


def _string(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values
        )
    assert isinstance(node, ast.Constant)
    return str(node.value)


def _allowed(source: str) -> dict[int, set[str]]:
    """Return the rules that comments permit, by line: the comment's own and the next."""
    found: dict[int, set[str]] = {}
    for number, line in enumerate(source.splitlines(), 1):
        for name in _ALLOW.findall(line):
            for permitted in (number, number + 1):
                found.setdefault(permitted, set()).add(name)
    return found


def hash_texts(path: str, source: str) -> Iterator[Text]:
    """Give the comments of a Makefile, a Dockerfile, a shell script or a TOML file."""
    allowed = _allowed(source)
    block: list[str] = []
    start = 0
    for number, line in enumerate([*source.splitlines(), ""], 1):
        if match := re.match(r"^\s*#+ ?(.*)", line):
            start = start if block else number
            block.append(match[1])
            continue
        if block:
            yield from _comment(path, start, block, allowed)
            block = []
        if match := re.search(r"\s#+ (.*)", line):
            yield from _comment(path, number, [match[1]], allowed)


def markdown_texts(path: str, source: str) -> Iterator[Text]:
    """Give the paragraphs, list items and table cells of a page; headings and code are left out."""
    allowed = _allowed(source)
    permitted: frozenset[str] = frozenset()
    block: list[str] = []
    start, fenced = 0, False
    lines = source.splitlines()
    for number, line in enumerate([*lines, ""], 1):
        fence = line.startswith("```")
        item = re.match(r"^\s*(?:[-*]|\d+\.) ", line)
        row = line.startswith("|")
        comment = line.startswith("<!--")
        heading = line.startswith("#")
        if fence or fenced or item or row or comment or heading or not line.strip():
            if block:
                yield Text(path, start, PAGE, plain(" ".join(block)), permitted)
                block, permitted = [], frozenset()
            permitted |= frozenset(allowed.get(number, ()))
        fenced ^= fence
        if fence or fenced or comment or heading or not line.strip():
            continue
        if row:
            following = lines[number] if number < len(lines) else ""
            if not re.match(r"^\|[\s|:-]+$", line) and not re.match(r"^\|[\s|:-]+$", following):
                for cell in re.split(r"(?<!\\)\|", line)[1:-1]:
                    if len(re.findall(r"[A-Za-z]{2,}", plain(cell))) >= 3:
                        yield Text(path, number, PAGE, plain(cell), permitted)
            continue
        if not block:
            start = number
        block.append(line[item.end() :] if item else line)


def read(root: Path = ROOT) -> list[Text]:
    """Return all prose of the tree."""
    found: list[Text] = []
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            path = file.relative_to(root).as_posix()
            found += python_texts(path, file.read_text(encoding="utf-8"))
    for file in [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]:
        path = file.relative_to(root).as_posix()
        if path not in GENERATED:
            found += markdown_texts(path, file.read_text(encoding="utf-8"))
    for path in HASH_COMMENTS:
        file = root / path
        if file.is_file():
            texts = python_texts if path.endswith(".py") else hash_texts
            found += texts(path, file.read_text(encoding="utf-8"))
    return found


# -- judging -------------------------------------------------------------------------------------


def check(text: Text) -> Iterator[Finding]:
    """Give the rules that a text breaks."""
    for number, sentence in enumerate(sentences(text.text)):
        for rule in RULES:
            if rule.name in text.allowed or text.kind not in rule.kinds:
                continue
            if rule.summary and not (text.first and number == 0):
                continue
            if rule.pattern.search(sentence):
                yield Finding(text, rule, sentence)


def unclean_paths(file: Path = UNCLEAN) -> list[str]:
    """Return the paths, files or folders, that are not checked yet."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [line for line in lines if line and not line.startswith("#")]


def is_below(path: str, parent: str) -> bool:
    """Return True if a path is the parent or lies in it."""
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def judge(texts: Sequence[Text], unclean: Sequence[str]) -> tuple[list[Finding], list[str]]:
    """Return the findings outside the unclean paths, and the unclean paths that are clean now."""
    findings = [finding for text in texts for finding in check(text)]
    dirty = {p for p in unclean if any(is_below(f.text.path, p) for f in findings)}
    open_findings = [f for f in findings if not any(is_below(f.text.path, p) for p in dirty)]
    return open_findings, [p for p in unclean if p not in dirty]


def sample(texts: Sequence[Text], count: int, seed: int) -> list[Text]:
    """Return random texts, a quarter of each kind."""
    dice = random.Random(seed)  # a sample for readers
    chosen: list[Text] = []
    for i, kind in enumerate(KINDS):
        of_kind = [t for t in texts if t.kind == kind and len(t.text.split()) >= 4]
        chosen += dice.sample(of_kind, min(len(of_kind), count * (i + 1) // 4 - count * i // 4))
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Check the English of the project.")
    parser.add_argument("paths", nargs="*", help="check these paths only, unclean ones included")
    parser.add_argument("--update", action="store_true", help="remove clean paths from the list")
    parser.add_argument("--sample", type=int, metavar="N", help="print N random texts and stop")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    options = parser.parse_args(arguments)
    texts = read()
    if options.sample:
        for number, text in enumerate(sample(texts, options.sample, options.seed), 1):
            print(f"{number:2} [{text.kind}] {text.path}:{text.line}\n   {text.text}")
        return 0
    if options.paths:
        texts = [t for t in texts if any(is_below(t.path, p) for p in options.paths)]
    unclean = [] if options.paths else unclean_paths()
    findings, clean = judge(texts, unclean)
    if options.update and clean:
        kept = [x for x in UNCLEAN.read_text(encoding="utf-8").splitlines() if x not in clean]
        UNCLEAN.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        clean = []
    for finding in findings:
        print(finding)
    for path in clean:
        print(f"{path} is clean: remove it from {UNCLEAN.name} (python tools/prose.py --update)")
    if findings or clean:
        print(f"prose: {len(findings)} findings")
    return 1 if findings or clean else 0


if __name__ == "__main__":
    sys.exit(main())
