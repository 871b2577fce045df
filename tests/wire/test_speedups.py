"""The choice between Python and the compiled functions; arguments and memory of the latter.

That both give the same results is tested in test_texts.py, test_v1.py and zmtp/test_decoder.py.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.wire import texts, v1
from kbridge.wire.message import Channel, Message, RawMessage
from kbridge.wire.signing import Signer
from kbridge.wire.speedups import choose
from kbridge.wire.zmq import serialize
from kbridge.wire.zmtp.encoder import encode
from tests.support.require import lack, require
from tests.wire.cases import HEADER, message

ROOT = Path(__file__).parents[2]
SIGNER = Signer(b"key")
TEXTS = [message("iopub", parent=HEADER, msg_type="stream", msg_id=f"{i}") for i in range(20)]
BATCH = [serialize(msg, SIGNER, [b"topic"]) for msg in TEXTS]
DATA = b"".join(map(encode, BATCH))
LIMITS = (1 << 20, 100, 1000)  # of a part, of parts, of messages


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    """The compiled module itself."""
    return importlib.import_module(require("kbridge_speedups"))


# -- the choice ---------------------------------------------------------------------------------


def test_the_compiled_functions_are_used_where_they_are_installed(compiled: ModuleType) -> None:
    functions, used = choose(pure=False)
    assert used == "compiled"
    assert functions.split is compiled.split


def test_python_is_used_on_request() -> None:
    functions, used = choose(pure=True)
    assert functions == (texts.read_texts, v1.encode_texts, None)
    assert "KBRIDGE_PURE" in used


def test_python_is_used_without_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kbridge_speedups", None)
    functions, used = choose(pure=False)
    assert functions == choose(pure=True)[0]
    assert used == "in Python (kbridge-speedups is not installed)"


@pytest.mark.parametrize(
    "source",
    ["import no_such_module", "raise ImportError('libc.so.6: version not found')"],
    ids=["a module is missing", "a library does not fit"],
)
def test_an_installation_that_cannot_be_imported_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "kbridge_speedups.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kbridge_speedups", raising=False)
    functions, used = choose(pure=False)
    assert functions == choose(pure=True)[0]
    assert used.startswith("in Python: kbridge_speedups cannot be imported: ")
    assert source.rsplit(maxsplit=1)[-1].strip("')") in used


def test_python_is_used_instead_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kbridge_speedups", SimpleNamespace(API=99))
    functions, used = choose(pure=False)
    assert functions == choose(pure=True)[0]
    assert "API 99" in used


@pytest.mark.parametrize(("value", "pure"), [("", False), ("0", False), ("1", True)])
def test_the_environment_chooses(compiled: ModuleType, value: str, pure: bool) -> None:
    code = "from kbridge.wire import speedups; print(speedups.split is None, speedups.used)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KBRIDGE_PURE": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0] == str(pure)


# -- splitting ----------------------------------------------------------------------------------


def test_whole_messages_are_split_up_to_a_number(compiled: ModuleType) -> None:
    for most in range(25):
        found: list[RawMessage] = []
        end = compiled.split(DATA, 0, 1 << 20, 100, most, found)
        assert found == BATCH[:most]
        assert end == len(b"".join(map(encode, BATCH[:most])))


def test_a_message_that_is_cut_is_left(compiled: ModuleType) -> None:
    one = encode(BATCH[0])
    for end in range(len(one)):
        found: list[RawMessage] = []
        assert compiled.split(one + one[:end], 0, *LIMITS, found) == len(one)
        assert found == BATCH[:1]


@pytest.mark.parametrize(
    "other",
    [
        b"\4\0",
        b"\1\0\4\0\0\0",
        b"\5\0",
        b"\xff\0",
        b"\2" + b"\xff" * 8,
        b"\2\x7f" + b"\xff" * 7,
        b"\3" + (1 << 63).to_bytes(8, "big"),
        encode([b"x" * ((1 << 20) + 1)]),
        encode([b"x"] * 101),
        encode([b"x"] * 65),
    ],
    ids=lambda data: data[:10].hex(),
)
def test_what_is_not_a_usual_message_is_left(compiled: ModuleType, other: bytes) -> None:
    one = encode(BATCH[0])
    found: list[RawMessage] = []
    assert compiled.split(one + other + one, 0, *LIMITS, found) == len(one)
    assert found == BATCH[:1]


def test_limits_may_be_larger_than_any_size(compiled: ModuleType) -> None:
    found: list[RawMessage] = []
    assert compiled.split(DATA, 0, 1 << 100, 1 << 100, 1 << 100, found) == len(DATA)
    assert found == BATCH


# -- wrong arguments ----------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.integers(-(1 << 70), 1 << 70),
    st.binary(max_size=300),
    st.binary(max_size=9).map(memoryview),
    st.binary(max_size=9).map(bytearray),
    st.text(max_size=5),
    st.sampled_from(
        [Message, tuple, list, int, object(), Channel.IOPUB, Channel.SHELL, print, SIGNER.inner]
    ),
    st.lists(st.binary(max_size=9) | st.none(), max_size=8),
    st.sampled_from([BATCH, TEXTS, [TEXTS], [BATCH], [None], [[None] * 7], [()], DATA]),
    st.lists(st.tuples(*[st.binary(max_size=3) | st.none()] * 6), max_size=2),
)


@given(st.sampled_from(["split", "read_texts", "encode_texts"]), st.lists(VALUES, max_size=8))
def test_any_arguments_give_a_result_or_an_error(name: str, arguments: list[Any]) -> None:
    function = getattr(importlib.import_module(require("kbridge_speedups")), name)
    arguments = [value[:] if isinstance(value, list) else value for value in arguments]
    with suppress(TypeError, ValueError, AttributeError, OverflowError):
        function(*arguments)


@given(st.integers(0, 5), VALUES)
def test_one_wrong_argument_of_read_texts_gives_a_result_or_an_error(
    place: int, value: object
) -> None:
    function = importlib.import_module(require("kbridge_speedups")).read_texts
    arguments = [Message, Channel.IOPUB, BATCH, 0, SIGNER.inner, SIGNER.outer]
    arguments[place] = value
    with suppress(TypeError, ValueError, AttributeError, OverflowError):
        function(*arguments)


class Broken:
    """A hash of which one method fails, or returns something else."""

    def __init__(self, method: str, result: object = None) -> None:
        self._method = method
        self._result = result

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            if self._result is None:
                raise ZeroDivisionError(name)
            return lambda *_: self._result
        return lambda *_: self if name in {"copy", "update"} else b"" if name == "digest" else ""


@pytest.mark.parametrize("method", ["copy", "update", "digest", "hexdigest"])
@pytest.mark.parametrize("place", [4, 5], ids=["inner", "outer"])
def test_an_error_of_a_hash_is_raised(compiled: ModuleType, method: str, place: int) -> None:
    arguments = [Message, Channel.IOPUB, BATCH, 0, Broken("none"), Broken("none")]
    assert compiled.read_texts(*arguments) == ([], []), "another signature"
    arguments[place] = Broken(method)
    if (method, place) in {("digest", 5), ("hexdigest", 4)}:  # not called
        assert compiled.read_texts(*arguments) == ([], [])
    else:
        with pytest.raises(ZeroDivisionError, match=method):
            compiled.read_texts(*arguments)


@pytest.mark.parametrize("result", [b"bytes", 7, "ž"], ids=str)
def test_a_digest_that_is_no_ascii_text_is_an_error(compiled: ModuleType, result: object) -> None:
    with pytest.raises((TypeError, UnicodeEncodeError)):
        compiled.read_texts(
            Message, Channel.IOPUB, BATCH, 0, Broken("none"), Broken("hexdigest", result)
        )


def test_a_batch_that_changes_while_it_is_read_is_safe(compiled: ModuleType) -> None:
    """A call to a hash may run any code."""
    batch = [frames[:] for frames in BATCH]

    class Clearing(Broken):
        def __getattr__(self, name: str) -> Any:
            for frames in batch:
                frames.clear()
            batch.clear()
            gc.collect()
            return super().__getattr__(name)

    hashes = Clearing("none"), Broken("none")
    assert compiled.read_texts(Message, Channel.IOPUB, batch, 0, *hashes) == ([], [])


# -- memory -------------------------------------------------------------------------------------


def use(compiled: ModuleType) -> None:
    """Call all functions, with results and with errors."""
    shell = Message(Channel.SHELL, b"{}", b"{}", b"{}", b"{}")
    hashes = SIGNER.inner, SIGNER.outer
    compiled.read_texts(Message, Channel.IOPUB, BATCH, 0, *hashes)
    compiled.read_texts(Message, Channel.IOPUB, BATCH, 0, None, None)
    compiled.read_texts(Message, Channel.IOPUB, [*BATCH, BATCH[0][1:-1], [], None], 0, *hashes)
    compiled.encode_texts(Channel.IOPUB, v1.encode_frame, [*TEXTS, shell])
    compiled.split(DATA + DATA[:100], 0, *LIMITS, [])
    wide = [b"t", *BATCH[0][1:3], b'{"msg_id": "\xff", "msg_type": "stream"}', *BATCH[0][4:]]
    compiled.read_texts(Message, Channel.IOPUB, [wide], 0, *hashes)
    for method in ("copy", "update", "digest", "hexdigest"):
        for inner, outer in ((Broken(method), hashes[1]), (hashes[0], Broken(method))):
            with suppress(ZeroDivisionError):
                compiled.read_texts(Message, Channel.IOPUB, BATCH, 0, inner, outer)
    for name, wrong in (
        ("read_texts", (Message, Channel.IOPUB, BATCH, -1, *hashes)),
        ("encode_texts", (Channel.IOPUB, v1.encode_frame, [shell, None])),
        ("split", (DATA, len(DATA) + 1, *LIMITS, [])),
    ):
        with pytest.raises((TypeError, ValueError)):
            getattr(compiled, name)(*wrong)


def test_no_memory_and_no_reference_is_lost(compiled: ModuleType) -> None:
    shared = [Message, Channel.IOPUB, SIGNER.inner, SIGNER.outer, BATCH, TEXTS[0], DATA, ()]
    shared += BATCH[0]
    rounds = 200

    def figures() -> list[int]:
        gc.collect()
        return [sys.getallocatedblocks(), *map(sys.getrefcount, shared)]

    use(compiled)
    before = figures()
    for _ in range(rounds):
        use(compiled)
    grown = [after - count for after, count in zip(figures(), before, strict=True)]
    assert max(grown) < rounds // 2, "a leak adds at least one per round"
    assert min(grown) > -rounds // 2, "and a reference too few takes one away"


def sanitizers(home: Path) -> dict[str, str]:
    """Compile the module with sanitizers; return the environment that loads it."""
    compiler = require("cc")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lack("Python's headers are missing: install python3-dev")
    library = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if sys.platform != "linux" or not Path(library).is_absolute():
        lack("the compiler has no libasan.so: install gcc")
    subprocess.run(
        [
            *(compiler, "-std=c11", "-g", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"),
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
            *("-DPy_LIMITED_API=0x030B0000", f"-I{sysconfig.get_path('include')}"),
            *("-o", home / "kbridge_speedups.abi3.so"),
            ROOT / "speedups" / "kbridge_speedups.c",
        ],
        check=True,
    )
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "LD_PRELOAD": library,
        # Python itself never frees some memory.
        "ASAN_OPTIONS": "detect_leaks=0",
        # Without pools, so that each object is a block of memory that is watched.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(home),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sanitizers_find_no_fault(tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer, with the tests of both implementations."""
    environment = sanitizers(tmp_path)
    code = "import kbridge_speedups; print(kbridge_speedups.__file__)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert loaded.stdout.startswith(str(tmp_path)), loaded.stdout + loaded.stderr
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"),
            *("-k", "not no_memory_and_no_reference and not claim and not timing"),
            *("tests/wire/test_speedups.py", "tests/wire/test_texts.py", "tests/wire/test_v1.py"),
            "tests/wire/zmtp/test_decoder.py",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
