"""The choice between Python and the compiled functions; arguments and memory of the latter.

That both give the same results is tested in test_texts.py, test_v1.py, test_dialect_cases.py,
test_message.py, zmtp/test_decoder.py and zmtp/test_encoder.py.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import FrameError, KernelMessageError
from kbridge.wire import texts, v1
from kbridge.wire.message import Channel, Message, RawMessage, message_key, scan_in_python
from kbridge.wire.signing import Signer
from kbridge.wire.speedups import choose
from kbridge.wire.zmq import serialize
from kbridge.wire.zmtp import encoder
from kbridge.wire.zmtp.encoder import encode
from tests.support.require import lack, require
from tests.wire.cases import HEADER, message

ROOT = Path(__file__).parents[2]
SIGNER = Signer(b"key")
TEXTS = [message("iopub", parent=HEADER, msg_type="stream", msg_id=f"{i}") for i in range(20)]
BATCH = [serialize(msg, SIGNER, [b"topic"]) for msg in TEXTS]
DATA = b"".join(map(encode, BATCH))
FRAME = v1.encode(TEXTS[0])
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
    assert functions == (
        *(texts.read_message, texts.read_texts, v1.decode, v1.encode_frame, v1.encode_texts),
        *(scan_in_python, encoder.encode, None),
    )
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
        [Message, tuple, list, int, object(), Channel.IOPUB, Channel.SHELL, print, SIGNER]
    ),
    st.lists(st.binary(max_size=9) | st.none(), max_size=8),
    st.sampled_from([BATCH, TEXTS, [TEXTS], [BATCH], [None], [[None] * 7], [()], DATA]),
    st.lists(st.tuples(*[st.binary(max_size=3) | st.none()] * 6), max_size=2),
    st.sampled_from([v1.NAMES, v1.CHANNELS, {}, TEXTS[0], (1,) * 6, FRAME, FRAME[:-1], "msg_id"]),
)

# Valid arguments of each function.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "decode": (Message, v1.CHANNELS, v1.decode, FRAME),
    "encode": (encode, BATCH[0]),
    "encode_frame": (v1.NAMES, v1.encode_frame, TEXTS[0]),
    "encode_texts": (v1.NAMES, v1.encode_frame, TEXTS),
    "read_message": (Message, texts.read_message, Channel.SHELL, BATCH[0], SIGNER),
    "read_texts": (Message, texts.read_texts, Channel.IOPUB, BATCH, 0, SIGNER),
    "scan": (scan_in_python, TEXTS[0].header, "msg_id"),
    "split": (DATA, 0, *LIMITS, []),
}
# Also of the functions in Python, for values that are not what they take.
ERRORS = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    OverflowError,
    FrameError,
    KernelMessageError,
)


def test_all_functions_have_valid_arguments(compiled: ModuleType) -> None:
    public = {name for name in dir(compiled) if not name.startswith("_")}
    assert public == {*ARGUMENTS, "API"}
    for name, arguments in ARGUMENTS.items():
        getattr(compiled, name)(*copied(arguments))


def copied(arguments: Sequence[Any]) -> list[Any]:
    """Copy lists: `split` extends one."""
    return [value[:] if isinstance(value, list) else value for value in arguments]


@given(st.sampled_from(sorted(ARGUMENTS)), st.lists(VALUES, max_size=8))
def test_any_arguments_give_a_result_or_an_error(name: str, arguments: list[Any]) -> None:
    function = getattr(importlib.import_module(require("kbridge_speedups")), name)
    with suppress(*ERRORS):
        function(*copied(arguments))


@given(st.sampled_from(sorted(ARGUMENTS)), st.integers(0, 5), VALUES)
def test_one_wrong_argument_gives_a_result_or_an_error(name: str, place: int, value: Any) -> None:
    function = getattr(importlib.import_module(require("kbridge_speedups")), name)
    arguments = list(ARGUMENTS[name])
    arguments[place % len(arguments)] = value
    with suppress(*ERRORS):
        function(*copied(arguments))


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_another_number_of_arguments_is_an_error(compiled: ModuleType, name: str) -> None:
    arguments = ARGUMENTS[name]
    for wrong in ((), arguments[:-1], (*arguments, None)):
        with pytest.raises(TypeError):
            getattr(compiled, name)(*wrong)


def fail(*_: object) -> None:
    pytest.fail("the function in Python was called for a usual message")


def test_usual_messages_are_handled_in_c(compiled: ModuleType) -> None:
    for channel in Channel:
        msg = TEXTS[0]._replace(channel=channel)
        read = compiled.read_message(Message, fail, channel, BATCH[0], SIGNER)
        assert read == (msg, "stream", message_key(msg.header))
        frame = compiled.encode_frame(v1.NAMES, fail, msg)
        assert frame == v1.encode_frame(msg)
        payload = v1.encode(msg)
        assert compiled.decode(Message, v1.CHANNELS, fail, payload) == msg
    assert compiled.encode(fail, BATCH[0]) == encode(BATCH[0])
    assert compiled.scan(fail, TEXTS[0].header, "msg_id") == TEXTS[0].msg_id
    assert compiled.read_texts(Message, fail, Channel.IOPUB, BATCH, 0, SIGNER)[0] == TEXTS


REQUEST = {
    "code": "print('ž\\n')",
    "silent": False,
    "store_history": True,
    "stop_on_error": True,
    "user_expressions": {"a": [1, -2.5e3, None]},
    "allow_stdin": True,
}


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")], ids=["spaced", "compact"])
def test_requests_of_frontends_are_decoded_in_c(
    compiled: ModuleType, separators: tuple[str, str], ascii_only: bool
) -> None:
    def raw(value: object) -> bytes:
        return json.dumps(value, separators=separators, ensure_ascii=ascii_only).encode()

    metadata = {"deletedCells": [], "recordTiming": False, "cellId": "a-b"}
    msg = Message(Channel.SHELL, raw(HEADER), b"{}", raw(metadata), raw(REQUEST))
    assert compiled.decode(Message, v1.CHANNELS, fail, v1.encode(msg)) == msg


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


def signer_of(inner: object, outer: object) -> SimpleNamespace:
    return SimpleNamespace(inner=inner, outer=outer)


def read(compiled: ModuleType, batch: list[RawMessage], inner: object, outer: object) -> Any:
    return compiled.read_texts(Message, ignore, Channel.IOPUB, batch, 0, signer_of(inner, outer))


NOTHING = None  # the result of `ignore`


@pytest.mark.parametrize("method", ["copy", "update", "digest", "hexdigest"])
@pytest.mark.parametrize("place", [0, 1], ids=["inner", "outer"])
def test_an_error_of_a_hash_is_raised(compiled: ModuleType, method: str, place: int) -> None:
    hashes = [Broken("none"), Broken("none")]
    assert read(compiled, BATCH, *hashes) == NOTHING, "another signature"
    hashes[place] = Broken(method)
    if (method, place) in {("digest", 1), ("hexdigest", 0)}:  # not called
        assert read(compiled, BATCH, *hashes) == NOTHING
        return
    with pytest.raises(ZeroDivisionError, match=method):
        read(compiled, BATCH, *hashes)
    with pytest.raises(ZeroDivisionError, match=method):
        compiled.read_message(Message, fail, Channel.SHELL, BATCH[0], signer_of(*hashes))


@pytest.mark.parametrize("result", [b"bytes", 7, "ž"], ids=str)
def test_a_digest_that_is_no_ascii_text_is_an_error(compiled: ModuleType, result: object) -> None:
    with pytest.raises((TypeError, UnicodeEncodeError)):
        read(compiled, BATCH, Broken("none"), Broken("hexdigest", result))


@pytest.mark.parametrize("place", ["inner", "outer"])
def test_a_signer_without_hashes_is_an_error(compiled: ModuleType, place: str) -> None:
    signer = signer_of(SIGNER.inner, SIGNER.outer)
    delattr(signer, place)
    with pytest.raises(AttributeError, match=place):
        compiled.read_texts(Message, ignore, Channel.IOPUB, BATCH, 0, signer)
    with pytest.raises(AttributeError, match=place):
        compiled.read_message(Message, fail, Channel.SHELL, BATCH[0], signer)


def test_an_error_of_the_function_in_python_is_raised(compiled: ModuleType) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    unusual = [*BATCH[0], b"buffer"]
    with_buffer = TEXTS[0]._replace(buffers=(b"buffer",))
    for name, arguments in {
        "decode": (Message, v1.CHANNELS, broken, b""),
        "encode": (broken, []),
        "encode_frame": (v1.NAMES, broken, with_buffer),
        "encode_texts": (v1.NAMES, broken, [TEXTS[0], with_buffer]),
        "read_message": (Message, broken, Channel.SHELL, unusual, SIGNER),
        "read_texts": (Message, broken, Channel.IOPUB, [unusual, BATCH[0]], 0, SIGNER),
        "scan": (broken, b"{}", "msg_id"),
    }.items():
        with pytest.raises(ZeroDivisionError):
            getattr(compiled, name)(*arguments)


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
    assert read(compiled, batch, *hashes) == NOTHING
    frames = BATCH[0][:]
    batch.append(frames)
    found = compiled.read_message(
        Message, lambda *given: given, Channel.SHELL, frames, signer_of(*hashes)
    )
    assert found[:2] == (Channel.SHELL, [])


# -- memory -------------------------------------------------------------------------------------


def use(compiled: ModuleType) -> None:
    """Call all functions, with results, without, and with errors."""
    shell = Message(Channel.SHELL, b"{}", b"{}", b"{}", b"{}")
    buffered = shell._replace(buffers=(b"buffer",))
    for name, arguments in ARGUMENTS.items():
        getattr(compiled, name)(*copied(arguments))
    unsigned = signer_of(None, None)
    status = message("iopub", parent=HEADER, msg_type="status", msg_id="s")
    new = message("iopub", parent=HEADER, msg_type="new_ž", msg_id="s")
    batch = [*BATCH[:3], serialize(status, SIGNER), *BATCH]
    compiled.read_texts(Message, ignore, Channel.IOPUB, batch, 0, SIGNER)
    compiled.read_texts(Message, ignore, Channel.IOPUB, batch, 3, SIGNER)
    compiled.read_texts(Message, ignore, Channel.IOPUB, BATCH, 0, unsigned)
    unusual: list[Any] = [BATCH[0][1:-1], [], None]
    compiled.read_texts(Message, ignore, Channel.IOPUB, [*BATCH, *unusual], 0, SIGNER)
    compiled.read_texts(Message, ignore, Channel.IOPUB, [], 0, SIGNER)
    wide = [b"t", *BATCH[0][1:3], b'{"msg_id": "\xff", "msg_type": "stream"}', *BATCH[0][4:]]
    for frames in (*unusual, wide, serialize(new, SIGNER), serialize(new, Signer(b"other"))):
        compiled.read_message(Message, ignore, Channel.SHELL, frames, SIGNER)
    compiled.encode_texts(v1.NAMES, v1.encode_frame, [*TEXTS, shell, buffered])
    for value in (shell, buffered, None, ("no channel", *shell[1:])):
        compiled.encode_frame(v1.NAMES, ignore, value)
    compiled.split(DATA + DATA[:100], 0, *LIMITS, [])
    for parts in ([b""], [b"x"] * 65, [b"x", None], [b"x" * 300], ()):
        compiled.encode(ignore, parts)
    for data in (FRAME[:-1], FRAME[:20], None, v1.encode(buffered), v1.encode(new)):
        compiled.decode(Message, v1.CHANNELS, ignore, data)
    compiled.decode(Message, {}, ignore, FRAME)
    for raw in (b'{"msg_id": "\xff"}', b"{}", None, b'{"msg_id":"a","msg_id":"b"}'):
        compiled.scan(ignore, raw, "msg_id")
    for method in ("copy", "update", "digest", "hexdigest"):
        for hashes in ((Broken(method), SIGNER.outer), (SIGNER.inner, Broken(method))):
            with suppress(ZeroDivisionError):
                read(compiled, BATCH, *hashes)
            with suppress(ZeroDivisionError):
                compiled.read_message(Message, ignore, Channel.SHELL, BATCH[0], signer_of(*hashes))
    for name, wrong in (
        ("read_texts", (Message, ignore, Channel.IOPUB, BATCH, -1, SIGNER)),
        ("read_texts", (Message, ignore, Channel.IOPUB, BATCH, 0, None)),
        ("read_texts", (list, ignore, Channel.IOPUB, BATCH, 0, SIGNER)),
        ("read_message", (Message, ignore, Channel.SHELL, BATCH[0], SimpleNamespace(inner=None))),
        ("encode_frame", (v1.NAMES, ignore, Message([], *shell[1:]))),
        ("encode_texts", (v1.NAMES, v1.encode_frame, [shell, None])),
        ("scan", (ignore, b"{}", "\ud800")),
        ("split", (DATA, len(DATA) + 1, *LIMITS, [])),
    ):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            getattr(compiled, name)(*wrong)


def ignore(*_: object) -> None:
    """Stand in for a function in Python."""


def test_no_memory_and_no_reference_is_lost(compiled: ModuleType) -> None:
    shared = [Message, Channel.IOPUB, SIGNER.inner, SIGNER.outer, BATCH, TEXTS[0], DATA, ()]
    shared += [*BATCH[0], *TEXTS[0][1:5], SIGNER, v1.NAMES, v1.CHANNELS, Channel.SHELL, FRAME]
    shared += [*v1.CHANNELS, *v1.NAMES, *v1.NAMES.values(), "stream", "status", ignore, v1.decode]
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
            *("tests/wire/test_dialect_cases.py", "tests/wire/test_message.py"),
            *("tests/wire/zmtp/test_decoder.py", "tests/wire/zmtp/test_encoder.py"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
