"""Compare names, signatures, traits and functions of seeds 003 and 004 with those of the
peer.

The checks take two classes, so that they can be applied to other implementations of the contract.
An implementation may accept more than the peer (parameters, types), but not less.
"""

import asyncio
import inspect
import subprocess
import sys
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection import abc as peer_abc
from jupyter_server.services.kernels.connection import base as peer_base
from jupyter_server.services.kernels.connection import channels as peer_channels
from traitlets import HasTraits, Instance, Unicode
from traitlets.config import Config, LoggingConfigurable

from kbridge.connection import abc, base, channels
from kbridge.errors import MalformedFrame

CLASSES = {
    "abc": (abc.KernelWebsocketConnectionABC, peer_abc.KernelWebsocketConnectionABC),
    "base": (base.BaseKernelWebsocketConnection, peer_base.BaseKernelWebsocketConnection),
    "channels": (
        channels.ZMQChannelsWebsocketConnection,
        peer_channels.ZMQChannelsWebsocketConnection,
    ),
}
FUNCTIONS = (
    "serialize_binary_message",
    "deserialize_binary_message",
    "serialize_msg_to_ws_v1",
    "deserialize_msg_from_ws_v1",
)
# The private names that seed 004 lists.
SEAMS = (
    "_default_close_future",
    "_default_kernel_info_future",
    "_finish_kernel_info",
    "_handle_kernel_info_reply",
    "_limit_rate",
    "_on_error",
    "_on_zmq_reply",
    "_reserialize_reply",
    "_send_status_message",
)
_FROM_TRAITLETS = set(dir(LoggingConfigurable))


# -- what is compared -----------------------------------------------------------------------


def names(theirs: type) -> list[str]:
    """Return the public names of a class, and its private names that the seeds list."""
    public = {n for n in dir(theirs) if not n.startswith("_")}
    return sorted((public | (set(SEAMS) & set(dir(theirs)))) - _FROM_TRAITLETS)


def methods(theirs: type) -> list[str]:
    return [n for n in names(theirs) if inspect.isroutine(getattr(theirs, n))]


def function(cls: type, name: str) -> Any:
    """Return a method without the wrappers of traitlets and `classmethod` objects."""
    found = inspect.getattr_static(cls, name)
    # traitlets' `@default` keeps what it decorates under `this_class`'s attribute.
    return getattr(found, "__func__", None) or getattr(found, "func", None) or found


def accepts(ours: Any, theirs: Any) -> list[str]:
    """Where `ours` refuses, or takes for another thing, what `theirs` is called with."""
    have = list(inspect.signature(ours).parameters.values())
    want = list(inspect.signature(theirs).parameters.values())
    faults = []
    for n, wanted in enumerate(want):
        if n >= len(have):
            faults.append(f"parameter {wanted.name!r} is missing")
        elif have[n].name != wanted.name:
            faults.append(f"parameter {n} is {have[n].name!r}, not {wanted.name!r}")
        elif have[n].kind != wanted.kind:
            faults.append(f"{wanted.name!r} is {have[n].kind!s}, not {wanted.kind!s}")
        elif have[n].default != wanted.default:
            faults.append(f"{wanted.name!r} defaults to {have[n].default!r}")
    faults += [
        f"parameter {more.name!r} is asked for beyond the peer's"
        for more in have[len(want) :]
        if more.default is more.empty and more.kind not in (more.VAR_POSITIONAL, more.VAR_KEYWORD)
    ]
    return faults


def kind(cls: type, name: str) -> str:
    """Return the kind of a name of a class: method, trait, and so on."""
    found = inspect.getattr_static(cls, name)
    if isinstance(found, property):
        return "property"
    if isinstance(found, classmethod):
        return "classmethod"
    return "method" if callable(getattr(cls, name)) else "trait or attribute"


def missing(ours: type, theirs: type) -> list[str]:
    return [n for n in names(theirs) if not hasattr(ours, n)]


def of_another_kind(ours: type, theirs: type) -> list[str]:
    return [
        f"{n} is a {kind(ours, n)}, not a {kind(theirs, n)}"
        for n in names(theirs)
        if hasattr(ours, n) and kind(ours, n) != kind(theirs, n)
    ]


def called_otherwise(ours: type, theirs: type) -> list[str]:
    return [
        f"{n}: {fault}"
        for n in methods(theirs)
        if hasattr(ours, n)
        for fault in accepts(function(ours, n), function(theirs, n))
    ]


def awaited_otherwise(ours: type, theirs: type) -> list[str]:
    return [
        n
        for n in methods(theirs)
        if inspect.iscoroutinefunction(function(ours, n))
        is not inspect.iscoroutinefunction(function(theirs, n))
    ]


def traits_that_differ(ours: type[HasTraits], theirs: type[HasTraits]) -> list[str]:
    """Return how a trait differs: type, values, default, or not configurable."""
    have, faults = ours.class_traits(), []
    for name, wanted in sorted(theirs.class_traits().items()):
        if name.startswith("_"):
            continue
        trait = have.get(name)
        if trait is None:
            faults.append(f"{name} is no trait")
            continue
        if not isinstance(trait, type(wanted)):
            faults.append(f"{name} is a {type(trait).__name__}, not a {type(wanted).__name__}")
        if isinstance(wanted, Instance) and not issubclass(_klass(wanted), _klass(trait)):
            faults.append(f"{name} refuses a {_klass(wanted).__name__}")
        if not isinstance(wanted, Instance) and trait.default() != wanted.default():
            faults.append(f"{name} defaults to {trait.default()!r}, not {wanted.default()!r}")
        if wanted.allow_none and not trait.allow_none:
            faults.append(f"{name} refuses None")
        if wanted.metadata.get("config") and not trait.metadata.get("config"):
            faults.append(f"{name} cannot be configured")
        if trait.metadata.get("config") and not trait.help:
            faults.append(f"{name} has no help")
    return faults


def _klass(trait: Any) -> type:
    trait._resolve_classes()  # a class may be given by its name
    found: type = trait.klass
    return found


@pytest.mark.parametrize("pair", CLASSES)
@pytest.mark.parametrize("faults", [missing, of_another_kind, called_otherwise, awaited_otherwise])
def test_the_class_has_the_names_of_jupyter_servers_class(pair, faults) -> None:
    assert names(CLASSES[pair][1]), "nothing is compared"
    assert faults(*CLASSES[pair]) == []


@pytest.mark.parametrize("pair", ["base", "channels"])
def test_the_traits_are_those_of_jupyter_servers_class(pair) -> None:
    assert traits_that_differ(*CLASSES[pair]) == []


def test_the_comparison_finds_differences() -> None:
    class Other(base.BaseKernelWebsocketConnection):
        kernel_id = "a-kernel"
        session = None
        kernel_ws_protocol = Unicode("v1")
        websocket_handler = Instance(Session)

        def handle_incoming_message(self, message): ...

        async def handle_outgoing_message(self, stream, outgoing_msg, more): ...

    theirs = CLASSES["base"][1]
    assert of_another_kind(Other, theirs) == [
        "kernel_id is a trait or attribute, not a property",
    ]
    assert called_otherwise(Other, theirs) == [
        "handle_incoming_message: parameter 1 is 'message', not 'incoming_msg'",
        "handle_outgoing_message: parameter 'more' is asked for beyond the peer's",
    ]
    assert awaited_otherwise(Other, theirs) == ["handle_outgoing_message"]
    assert sorted(traits_that_differ(Other, theirs)) == sorted(
        [
            "kernel_ws_protocol defaults to 'v1', not None",
            "kernel_ws_protocol refuses None",
            "kernel_ws_protocol cannot be configured",
            "session is no trait",
            "websocket_handler refuses a WebSocketHandler",
        ]
    )
    assert missing(HasTraits, theirs) == names(theirs)


def test_the_abstract_methods_are_those_of_jupyter_server() -> None:
    ours, theirs = CLASSES["abc"]
    assert ours.__abstractmethods__ == theirs.__abstractmethods__
    assert set(ours.__annotations__) >= set(theirs.__annotations__)


def test_the_classes_are_connections_and_inherit_as_the_peers_do() -> None:
    for cls in (base.BaseKernelWebsocketConnection, channels.ZMQChannelsWebsocketConnection):
        assert issubclass(cls, abc.KernelWebsocketConnectionABC)
        assert issubclass(cls, LoggingConfigurable)
    assert issubclass(channels.ZMQChannelsWebsocketConnection, base.BaseKernelWebsocketConnection)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_have_the_parameters_of_jupyter_servers_functions(name) -> None:
    assert accepts(getattr(base, name), getattr(peer_base, name)) == []


# -- futures --------------------------------------------------------------------------------


def test_futures_of_threads_are_wrapped_only_in_a_running_loop() -> None:
    one: Future[int] = Future()
    assert channels._ensure_future(one) is one

    async def inside() -> int:
        wrapped = channels._ensure_future(one)
        assert isinstance(wrapped, asyncio.Future)
        one.set_result(7)
        return int(await wrapped)

    assert asyncio.run(inside()) == 7


def test_each_new_connection_has_separate_futures_that_are_not_done() -> None:
    made = [channels.ZMQChannelsWebsocketConnection() for _ in range(2)]
    for name in ("_kernel_info_future", "_close_future"):
        one, two = (getattr(each, name) for each in made)
        assert isinstance(one, Future)
        assert not one.done()
        assert one is not two


# -- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("ZMQChannelsWebsocketConnection", "limit_rate", False),
        ("ZMQChannelsWebsocketConnection", "iopub_msg_rate_limit", 12.0),
        ("ZMQChannelsWebsocketConnection", "iopub_data_rate_limit", 13.0),
        ("ZMQChannelsWebsocketConnection", "rate_limit_window", 1.5),
        ("ZMQChannelsWebsocketConnection", "kernel_ws_protocol", ""),
        ("BaseKernelWebsocketConnection", "kernel_ws_protocol", ""),
    ],
)
def test_configuration_of_jupyter_servers_class_applies(section, name, value) -> None:
    config = Config({section: {name: value}})
    for cls in (channels.ZMQChannelsWebsocketConnection, CLASSES["channels"][1]):

        class Mine(cls):  # type: ignore[misc, valid-type]
            """A subclass, to which the config sections of its parents apply."""

        assert getattr(cls(config=config), name) == value
        assert getattr(Mine(config=config), name) == value


def test_standalone_jupyter_server_is_not_imported() -> None:
    code = (
        "import sys, kbridge.connection.channels, kbridge.connection.base, kbridge.connection.abc,"
        " kbridge.server.main;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'jupyter_server'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


# -- the four functions ---------------------------------------------------------------------

ZONES = st.sampled_from(
    [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))]
)
DATES = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=ZONES)  # noqa: DTZ001
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | DATES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=4)
HEADERS = st.fixed_dictionaries({"msg_id": st.text(), "msg_type": st.text(), "date": DATES})
PARTS = ("header", "parent_header", "metadata", "content")
MESSAGES = st.fixed_dictionaries(
    {
        "header": HEADERS,
        "parent_header": HEADERS | st.just({}),
        "metadata": OBJECTS,
        "content": OBJECTS,
        "buffers": st.lists(st.binary(), max_size=5),
    },
    optional={"channel": st.text(), "msg_id": st.text(), "tracker": st.none()},
)
CHANNELS = st.sampled_from(["shell", "iopub", "stdin", "control"]) | st.text()


@given(MESSAGES)
def test_binary_messages_are_the_same_bytes_and_the_same_values(msg) -> None:
    blob = base.serialize_binary_message(msg)
    assert blob == peer_base.serialize_binary_message(msg)
    read = base.deserialize_binary_message(blob)
    assert read == peer_base.deserialize_binary_message(blob)
    assert read["header"]["date"] == msg["header"]["date"]
    assert read["buffers"] == msg["buffers"]


@given(st.lists(st.binary(), max_size=9), CHANNELS)
def test_v1_frames_of_any_number_of_parts_are_the_same(parts, channel) -> None:
    frame = base.serialize_msg_to_ws_v1(parts, channel)
    assert frame == peer_base.serialize_msg_to_ws_v1(parts, channel)
    assert base.deserialize_msg_from_ws_v1(frame) == (channel, parts)
    assert peer_base.deserialize_msg_from_ws_v1(frame) == (channel, parts)


@given(MESSAGES, CHANNELS)
def test_v1_frames_of_packed_dicts_are_the_same(msg, channel) -> None:
    """Without buffers, because the peer drops those of a dict."""
    pack = Session().pack
    msg["buffers"] = []
    frame = base.serialize_msg_to_ws_v1(msg, channel, pack)
    assert frame == peer_base.serialize_msg_to_ws_v1(msg, channel, pack)
    assert frame == base.serialize_msg_to_ws_v1(msg_or_list=msg, channel=channel, pack=pack)


@given(st.data())
@settings(deadline=None)
def test_corrupted_bytes_are_refused_or_read_as_by_jupyter_server(data) -> None:
    """Jupyter Server raises various errors here, or returns parts that were not sent."""
    msg = data.draw(MESSAGES)
    parts = [b"{}" for _ in PARTS] + msg["buffers"]
    for name, whole in (
        ("deserialize_binary_message", base.serialize_binary_message(msg)),
        ("deserialize_msg_from_ws_v1", base.serialize_msg_to_ws_v1(parts, "shell")),
    ):
        harmed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
        for at in data.draw(st.lists(st.integers(0, max(0, len(harmed) - 1)), max_size=3)):
            if harmed:
                harmed[at] ^= 1 << data.draw(st.integers(0, 7))
        ours = _outcome(getattr(base, name), bytes(harmed))
        if isinstance(ours, Exception):
            # The peer is not called: with a corrupted count it would create a list of any length.
            assert isinstance(ours, MalformedFrame), f"{ours!r} of {bytes(harmed)!r}"
            continue
        theirs = _outcome(getattr(peer_base, name), bytes(harmed))
        if not isinstance(theirs, KeyError):  # a message without a header, which is detected later
            assert ours == theirs


def _outcome(read: Any, data: bytes) -> Any:
    try:
        return read(data)
    except Exception as error:  # noqa: BLE001  # the peer's are of any kind
        return error
