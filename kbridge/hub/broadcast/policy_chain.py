"""The policies of a hub, from its settings. Add new policies here."""

from __future__ import annotations

import logging

from kbridge.flow.filters import AllowedTypes, HideTracebacks
from kbridge.flow.pace import Pace
from kbridge.flow.policy import Policy
from kbridge.flow.ratelimit import RateLimit
from kbridge.hub.notices import Notices
from kbridge.hub.settings import HubSettings

__all__ = ["incoming", "outgoing", "pace", "rate_limit"]

# Bound methods are called faster than objects with a `__call__`.


def incoming(settings: HubSettings) -> list[Policy]:
    """Return the policies for messages of clients, in order."""
    policies: list[Policy] = []
    if settings.allowed_message_types:
        policies.append(AllowedTypes(settings.allowed_message_types).__call__)
    return policies


def pace(settings: HubSettings) -> Pace:
    """Return the pace that delays output above the limits, unless such output is dropped."""
    return Pace(
        settings.limit_rate and settings.rate_limit_policy == "coalesce",
        settings.iopub_msg_rate_limit,
        settings.iopub_data_rate_limit,
        settings.rate_limit_window,
    )


def rate_limit(
    settings: HubSettings,
    notices: Notices,
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> RateLimit | None:
    """Return the policy that drops output above the limits; None unless such output is dropped."""
    if not settings.limit_rate or settings.rate_limit_policy != "drop":
        return None
    return RateLimit(
        iopub_msg_rate_limit=settings.iopub_msg_rate_limit,
        iopub_data_rate_limit=settings.iopub_data_rate_limit,
        rate_limit_window=settings.rate_limit_window,
        notice=notices.stderr,
        on_event=log.warning,
    )


def outgoing(settings: HubSettings, pace: Pace, limit: RateLimit | None) -> list[Policy]:
    """Return the policies for messages of the kernel, in order."""
    policies: list[Policy] = []
    if not settings.allow_tracebacks:
        policies.append(HideTracebacks(settings.traceback_replacement_message).__call__)
    if pace.limits:
        policies.append(pace.__call__)
    elif limit is not None:
        policies.append(limit.__call__)
    return policies
