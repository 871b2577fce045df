"""The settings of a connection, as traits; Jupyter Server's names are used where they exist.

`ZMQChannelsWebsocketConnection` has these traits under the same names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from jupyter_core.paths import jupyter_runtime_dir
from traitlets import Bool, CaselessStrEnum, Float, Integer, Unicode

from kbridge.hub.settings import HubSettings
from kbridge.link.choice import LinkKind

__all__ = [
    "HUB_SETTINGS",
    "acknowledge",
    "burst_limit",
    "default_journal_dir",
    "history_limit",
    "hub_settings",
    "iopub_data_rate_limit",
    "iopub_msg_rate_limit",
    "journal_dir",
    "journal_disk_limit",
    "journal_disk_reserve",
    "journal_disk_total",
    "journal_limit",
    "kernel_message_limit",
    "limit_rate",
    "link",
    "rate_limit_policy",
    "rate_limit_window",
    "request_limit",
    "resume_timeout",
]

_DEFAULTS = HubSettings()
_JOURNAL: Final = "kbridge-journal"  # the directory of the journals, in the runtime directory

HUB_SETTINGS: Final = (
    "limit_rate",
    "rate_limit_policy",
    "iopub_msg_rate_limit",
    "iopub_data_rate_limit",
    "rate_limit_window",
    "journal_limit",
    "burst_limit",
    "history_limit",
    "journal_dir",
    "journal_disk_limit",
    "journal_disk_total",
    "journal_disk_reserve",
    "acknowledge",
    "resume_timeout",
    "request_limit",
    "kernel_message_limit",
    "link",
)
"""The traits that are fields of `HubSettings`, under the same names."""

limit_rate = Bool(
    _DEFAULTS.limit_rate,
    config=True,
    help=(
        "Limit the rate of iopub messages; see rate_limit_policy,"
        " iopub_msg_rate_limit, iopub_data_rate_limit and rate_limit_window."
    ),
)
rate_limit_policy = CaselessStrEnum(
    ["coalesce", "drop"],
    _DEFAULTS.rate_limit_policy,
    config=True,
    help=(
        "The treatment of output above the limits. `coalesce`: no output is lost; stream texts"
        " are joined, superseded updates are skipped, and stream output is delayed to"
        " iopub_data_rate_limit. Clients that are behind get joined output, too."
        " `drop`: output is dropped, with a notice, as in Jupyter Server."
    ),
)
iopub_msg_rate_limit = Float(
    _DEFAULTS.iopub_msg_rate_limit,
    config=True,
    help=(
        "Messages per second on iopub above which output is limited; 0 for no limit. With"
        " rate_limit_policy=coalesce: above a tenth of it, output is joined and written 20"
        " times per second."
    ),
)
iopub_data_rate_limit = Float(
    _DEFAULTS.iopub_data_rate_limit,
    config=True,
    help="Bytes per second of stream output above which output is limited; 0 for no limit.",
)
rate_limit_window = Float(
    _DEFAULTS.rate_limit_window,
    config=True,
    help=(
        "Seconds over which the two rates are measured. With rate_limit_policy=coalesce: stream"
        " output of that many seconds may pass without delay."
    ),
)
journal_limit = Integer(
    _DEFAULTS.journal_limit,
    config=True,
    help=(
        "Bytes of output per kernel that are held for websockets that have not read them."
        " Above it (and burst_limit), the oldest output is dropped, and a marker says so."
    ),
)
burst_limit = Integer(
    _DEFAULTS.burst_limit,
    config=True,
    help=(
        "Bytes of output above journal_limit that all kernels together may hold, for bursts"
        " that are faster than their readers. They are held only while the fastest websocket"
        " of a kernel keeps reading and is more than half of journal_limit behind, or while the"
        " disk of journal_dir is that far behind. Lower it if the server has little memory; 0 for"
        " none."
    ),
)
history_limit = Integer(
    _DEFAULTS.history_limit,
    config=True,
    help=(
        "Bytes of output per kernel that are kept after every websocket has read them, for"
        " clients that ask for them with `since`."
    ),
)
journal_dir = Unicode(
    config=True,
    help=(
        "Directory for output that does not fit into memory, and that clients can read after a"
        " crash of the server. Only its owner can read it. The files of a kernel are removed with"
        " the kernel. By default `kbridge-journal` in Jupyter's runtime directory. Empty: output"
        " is in memory only."
    ),
)
journal_disk_limit = Integer(
    _DEFAULTS.journal_disk_limit,
    config=True,
    help=(
        "Bytes that the files of one kernel in journal_dir may have. Above it, the oldest output"
        " is dropped, and a marker says so."
    ),
)
journal_disk_total = Integer(
    _DEFAULTS.journal_disk_total,
    config=True,
    help=(
        "Bytes that the files of all kernels in journal_dir may have. Above it, the oldest output"
        " of the kernel with the largest files is dropped."
    ),
)
journal_disk_reserve = Float(
    _DEFAULTS.journal_disk_reserve,
    config=True,
    help=(
        "Share of the file system of journal_dir that stays free: 0.05 for 5 %. When less is free,"
        " old output is dropped as above; when none is left to drop, output is in memory only."
    ),
)
acknowledge = Bool(
    _DEFAULTS.acknowledge,
    config=True,
    help=(
        "Ask clients that give a session_id or since, by websocket pings, which messages have"
        " arrived. If False, messages in transit are lost when a connection breaks."
    ),
)
resume_timeout = Float(
    _DEFAULTS.resume_timeout,
    config=True,
    help=(
        "Seconds for which output is held for a client that has disconnected and may reconnect."
        " With 0, a client that reconnects receives new output only."
    ),
)
request_limit = Integer(
    _DEFAULTS.request_limit,
    config=True,
    help=(
        "Bytes of requests that may wait for a kernel that is not ready or does not read. Above"
        " it, no more messages are read from the websockets that sent them."
    ),
)
kernel_message_limit = Integer(
    _DEFAULTS.kernel_message_limit,
    config=True,
    help=(
        "Bytes that one part of a kernel's message may have on iopub, before it is verified:"
        " the content of an output, or one of its buffers. Replies may have a 16th of it,"
        " input requests a 1,024th. A larger part is lost: it closes the connection, which is"
        " then opened again."
    ),
)
link = CaselessStrEnum(
    [kind.value for kind in LinkKind],
    _DEFAULTS.link,
    config=True,
    help=(
        "The connections to kernels. `zmtp`: plain sockets, read by the event loop; ZMTP 3.0 and"
        " 3.1 over TCP and unix sockets, without encryption. `pyzmq`: libzmq. `auto`: plain sockets"
        " if they can reach the kernel, and libzmq for kernels that encrypt or speak an older ZMTP."
    ),
)


def default_journal_dir() -> str:
    """Return the directory of the journals, for a connection without a manager of kernels."""
    return str(Path(jupyter_runtime_dir()) / _JOURNAL)


def hub_settings(connection: Any, manager: Any, *, hooked: bool) -> HubSettings:
    """Return the settings of the hubs of all connections like one.

    Parameters
    ----------
    connection : ZMQChannelsWebsocketConnection
        The connection whose traits are used.
    manager
        The manager of all kernels; see `ZMQChannelsWebsocketConnection.hub_settings`.
    hooked : bool
        True if each message passes methods of the connection, which then apply the limits.
    """
    runtime_dir = getattr(manager, "connection_dir", "")
    if runtime_dir and not connection.trait_has_value("journal_dir"):
        connection.journal_dir = str(Path(runtime_dir) / _JOURNAL)
    chosen: dict[str, Any] = {name: getattr(connection, name) for name in HUB_SETTINGS}
    for name in ("allow_tracebacks", "traceback_replacement_message", "kernel_info_timeout"):
        if hasattr(manager, name):
            chosen[name] = getattr(manager, name)
    if connection.trait_has_value("kernel_info_timeout"):  # set for this class: it goes before
        chosen["kernel_info_timeout"] = connection.kernel_info_timeout
    for name in ("allowed_message_types", "untracked_message_types"):
        chosen[name] = tuple(getattr(manager, name, ()))
    if not getattr(manager, "buffer_offline_messages", True):
        chosen["resume_timeout"] = 0.0
    if hooked:
        # Each websocket has its own say about limits and tracebacks.
        chosen["limit_rate"], chosen["allow_tracebacks"] = False, True
    return HubSettings(**chosen)
