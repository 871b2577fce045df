"""The settings of a connection: traits, under the names of Jupyter Server's where it has them."""

from __future__ import annotations

from typing import ClassVar

from traitlets import Bool, CaselessStrEnum, Float, Integer
from traitlets.config import LoggingConfigurable

from kbridge.hub.settings import HubSettings

__all__ = ["ConnectionSettings"]

_DEFAULTS = HubSettings()


class ConnectionSettings(LoggingConfigurable):
    """Traits only; what they do is in `kbridge.hub`.

    Attributes
    ----------
    HUB_SETTINGS : tuple of str
        Those that are settings of the hub, under the same names.
    """

    HUB_SETTINGS: ClassVar[tuple[str, ...]] = (
        "limit_rate",
        "rate_limit_policy",
        "iopub_msg_rate_limit",
        "iopub_data_rate_limit",
        "rate_limit_window",
        "journal_limit",
        "burst_limit",
        "history_limit",
        "acknowledge",
        "resume_timeout",
        "request_limit",
        "kernel_message_limit",
    )

    limit_rate = Bool(
        _DEFAULTS.limit_rate,
        config=True,
        help=(
            "Whether to limit the rate of iopub messages; see rate_limit_policy,"
            " iopub_msg_rate_limit, iopub_data_rate_limit and rate_limit_window."
        ),
    )
    rate_limit_policy = CaselessStrEnum(
        ["coalesce", "drop"],
        _DEFAULTS.rate_limit_policy,
        config=True,
        help=(
            "What becomes of output beyond the limits. `coalesce`: nothing is lost; stream texts"
            " are joined, what is superseded is passed over, and what is more than"
            " iopub_data_rate_limit comes at that pace. Clients that lag get it joined, too."
            " `drop`: it is left out, with a notice, as in Jupyter Server."
        ),
    )
    iopub_msg_rate_limit = Float(
        _DEFAULTS.iopub_msg_rate_limit,
        config=True,
        help=(
            "Messages a second on iopub above which output is limited; 0 for no limit. With"
            " rate_limit_policy=coalesce: from a tenth of it on, output is written 20 times a"
            " second, joined."
        ),
    )
    iopub_data_rate_limit = Float(
        _DEFAULTS.iopub_data_rate_limit,
        config=True,
        help="Bytes a second of stream output above which output is limited; 0 for no limit.",
    )
    rate_limit_window = Float(
        _DEFAULTS.rate_limit_window,
        config=True,
        help=(
            "Seconds over which the two rates are measured. With rate_limit_policy=coalesce: how"
            " many seconds' worth of stream output may come at once."
        ),
    )
    journal_limit = Integer(
        _DEFAULTS.journal_limit,
        config=True,
        help=(
            "Bytes of a kernel's output that are held for websockets that have yet to read them."
            " Beyond it (and burst_limit), the oldest output is dropped, and a marker says so."
        ),
    )
    burst_limit = Integer(
        _DEFAULTS.burst_limit,
        config=True,
        help=(
            "Bytes of output that all kernels together may hold beyond journal_limit, for bursts"
            " that come faster than they are read. They are held only while the fastest websocket"
            " of a kernel reads on and is more than half of journal_limit behind. Lower it where"
            " the server has little memory; 0 for none."
        ),
    )
    history_limit = Integer(
        _DEFAULTS.history_limit,
        config=True,
        help=(
            "Bytes of a kernel's output that are kept once every websocket has read them, for"
            " those that ask for it with `since`."
        ),
    )
    acknowledge = Bool(
        _DEFAULTS.acknowledge,
        config=True,
        help=(
            "Whether clients that give a session_id or since are asked, by websocket pings, what"
            " has arrived. Off, what was on its way when a connection breaks is lost."
        ),
    )
    resume_timeout = Float(
        _DEFAULTS.resume_timeout,
        config=True,
        help=(
            "Seconds for which output is held for a client that went away and may come back."
            " 0: who comes back starts afresh."
        ),
    )
    request_limit = Integer(
        _DEFAULTS.request_limit,
        config=True,
        help=(
            "Bytes of requests that are held for a kernel that is not ready or does not read,"
            " before the websockets that they come from are not read any more."
        ),
    )
    kernel_message_limit = Integer(
        _DEFAULTS.kernel_message_limit,
        config=True,
        help=(
            "Bytes that one part of a kernel's message may have on iopub, before it is verified:"
            " the content of an output, or one of its buffers. Replies may have a 16th of it,"
            " input requests a 1,024th. A larger one ends the connection, which is made anew, and"
            " is lost."
        ),
    )
