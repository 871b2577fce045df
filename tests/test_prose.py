"""For each rule of the prose checker, test a sentence that it refuses and one that it accepts."""

import re

import pytest

from tools import prose

# The name of a rule: sentences that it refuses, and plain ones that look similar.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "headless": (
        ["Return what is held.", "It encodes what came.", "Drop whatever is older."],
        [
            "The page says what is missing.",
            "Docker shows what has changed.",
            "It depends on what is installed.",
            "Do what the caller asks.",
            "The error says what is the matter.",
        ],
    ),
    "headless-who": (
        ["It goes to who asked.", "Whoever asks gets it."],
        [
            "Clients who read slowly lag.",
            "The owner, who reads it, may write.",
            "It knows who asked.",
        ],
    ),
    "question": (
        [
            "Who lags gets it joined.",
            "What the kernel said.",
            "Whether it is there.",
            "How often a kernel is restarted.",
        ],
        ["True if it is there.", "Who signs the messages?", "How to pin the base image."],
    ),
    "question-summary": (
        ["Where a cursor stands.", "When `due` has something new to say."],
        ["Return the place of a cursor.", "When the client closes, forget it."],
    ),
    "is-no": (
        ["A text that is no JSON.", "These are no kernels."],
        ["There is no such kernel.", "It is no longer used.", "It is no larger than the limit."],
    ),
    "further": (["A further websocket costs a cursor."], ["Further messages are dropped."]),
    "any-more": (["It is not used any more."], ["It takes any more than two frames."]),
    "likewise": (["Likewise for stdin."], ["The same is true for stdin."]),
    "mend": (["Mend the kernel."], ["Fix the kernel.", "We recommend it."]),
    "is-to-be": (["It is to be read once."], ["It must be read once.", "The aim is to read once."]),
    "of-own": (
        ["A socket of its own.", "A message of ours."],
        ["Its own socket.", "One of our sockets.", "The port of its own address."],
    ),
    "in-place-of": (
        ["It speaks in the kernel's place.", "Others are sent in their place."],
        ["It speaks on behalf of the kernel.", "It changes the list in place."],
    ),
    "per-unit": (
        ["20 lines a minute.", "It takes 3 us of CPU a message.", "It is sent once a second."],
        [
            "20 lines per minute.",
            "It opens a second websocket.",
            "It sends the frames a second time.",
            "To send a message takes time.",
        ],
    ),
    "inversion": (["Nor is it read.", "So do the others."], ["Neither is read.", "So that it is."]),
    "archaic": (["It begins anew.", "In the midst of a cell."], ["It begins again."]),
}


def findings(sentence: str) -> set[str]:
    text = prose.Text("x.py", 1, prose.DOCSTRING, sentence, first=True)
    return {finding.rule.name for finding in prose.check(text)}


def test_every_rule_has_examples() -> None:
    assert set(CASES) == {rule.name for rule in prose.RULES}


@pytest.mark.parametrize(
    ("rule", "sentence"), [(name, s) for name, (refused, _) in CASES.items() for s in refused]
)
def test_refused_examples_break_their_rule(rule: str, sentence: str) -> None:
    assert rule in findings(sentence)


@pytest.mark.parametrize("sentence", [s for _, accepted in CASES.values() for s in accepted])
def test_accepted_examples_break_no_rule(sentence: str) -> None:
    assert findings(sentence) == set()


@pytest.fixture(scope="module")
def tree() -> list[prose.Text]:
    return prose.read()


def test_the_tree_is_clean(tree: list[prose.Text]) -> None:
    """Run `python tools/prose.py --update` if a path on the list has become clean."""
    refused, clean = prose.judge(tree, prose.unclean_paths())
    assert [str(finding) for finding in refused] == []
    assert clean == []


MODULE = '''"""Whether it is the docstring of a module.

Parameters
----------
name : str
    What came in a docstring.

- A list item that is no item.
"""

LIMIT = 3  # what is held beyond the limit
# A comment on two lines
# that is no comment.


def function():
    """Return nothing."""
    # prose: allow is-no: the sentence quotes a specification
    raise ValueError(f"{LIMIT} is no number of kernels")


def other():
    raise ValueError(f"{LIMIT} is no number of kernels")
'''


def test_all_texts_of_a_module_are_found() -> None:
    found = [
        (finding.text.line, finding.text.kind, finding.rule.name)
        for text in prose.python_texts("kbridge/x.py", MODULE)
        for finding in prose.check(text)
    ]
    assert sorted(found) == [
        (1, "docstring", "is-no"),
        (1, "docstring", "question"),
        (1, "docstring", "question"),
        (11, "comment", "question"),
        (12, "comment", "is-no"),
        (23, "message", "is-no"),
    ]


PAGE = """# What is no paragraph

A paragraph that is
no paragraph. See `what is no code`.

| what | who is no cell |
|---|---|
| a cell | a text that is no cell |

- An item that is no item.

<!-- prose: allow is-no: quoted from the specification -->
This is no finding.

```
This is no prose.
```
"""


def test_all_texts_of_a_page_are_found() -> None:
    texts = list(prose.markdown_texts("docs/x.md", PAGE))
    assert [t.text for t in texts] == [
        "A paragraph that is no paragraph. See CODE.",
        "a text that is no cell",
        "An item that is no item.",
        "This is no finding.",
    ]
    assert [len(list(prose.check(t))) for t in texts] == [1, 1, 1, 0]


def test_a_path_on_the_list_must_be_unclean() -> None:
    bad = prose.Text("kbridge/hub/x.py", 1, prose.COMMENT, "It is no frame.")
    good = prose.Text("kbridge/link/x.py", 1, prose.COMMENT, "It is a frame.")
    refused, clean = prose.judge([bad, good], ["kbridge/hub", "kbridge/link"])
    assert (refused, clean) == ([], ["kbridge/link"])
    refused, _ = prose.judge([bad, good], ["kbridge/hubs"])
    assert [finding.text for finding in refused] == [bad]


def test_a_sample_can_be_drawn_again(tree: list[prose.Text]) -> None:
    drawn = prose.sample(tree, 60, seed=7)
    assert drawn == prose.sample(tree, 60, seed=7)
    assert {kind: sum(t.kind == kind for t in drawn) for kind in prose.KINDS} == dict.fromkeys(
        prose.KINDS, 15
    )


def test_the_command_reports_findings_of_unclean_paths_that_are_named(
    tree: list[prose.Text], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = prose.Text("kbridge/hub/x.py", 3, prose.COMMENT, "It is no frame.")
    monkeypatch.setattr(prose, "read", lambda: [bad])
    monkeypatch.setattr(prose, "unclean_paths", lambda: ["kbridge/hub"])
    assert prose.main([]) == 0
    assert prose.main(["kbridge/hub"]) == 1
    assert "kbridge/hub/x.py:3: is-no" in capsys.readouterr().out
    monkeypatch.setattr(prose, "read", lambda: tree)
    assert prose.main(["--sample", "4", "--seed", "1"]) == 0
    assert len(re.findall(r"^ *\d+ \[", capsys.readouterr().out, re.MULTILINE)) == 4
