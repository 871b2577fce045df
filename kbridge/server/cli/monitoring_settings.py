"""The settings of `KbridgeApp` for monitoring."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, CaselessStrEnum, HasTraits, Integer, Unicode, validate

from kbridge.connection.audit import AuditCode
from kbridge.server.setting_checks import check_ip, check_token, checked

__all__ = ["MonitoringSettings"]


class MonitoringSettings(HasTraits):
    """Settings for programs that watch the server."""

    metrics_token = Unicode(
        "",
        help="""Another secret, with which a client may read `/metrics` and nothing else: for
        Prometheus, which then needs no token that can run code. Clients with the server's token may
        read `/metrics` in any case.""",
    ).tag(config=True)
    metrics_port = Integer(
        0,
        min=0,
        max=65535,
        help="""Port of another listener, which serves only `/metrics`; 0 for none. If
        `metrics_token` is set, its clients must send that. Otherwise they need no token.""",
    ).tag(config=True)
    metrics_ip = Unicode(
        "127.0.0.1",
        help="Address for `metrics_port`; `*` or an empty string for all addresses.",
    ).tag(config=True)
    metrics_per_kernel = Bool(
        False,
        help="""True: `/metrics` also has the ids of kernels, with a few values of each. Prometheus
        stores new series for each kernel then.""",
    ).tag(config=True)

    tracing = Bool(
        False,
        help="""True: executions are sent as OpenTelemetry traces, as its environment variables say
        (`OTEL_EXPORTER_OTLP_ENDPOINT` and others). Needs the extra `otel`.""",
    ).tag(config=True)

    page = Bool(
        True,
        help="""True: browsers receive a live view of the kernels at `/`, and a console for each
        kernel. False: they receive a short overview without scripts.""",
    ).tag(config=True)

    access_log = Bool(
        True,
        help="""True: requests are logged, successful ones with `--debug` only, and others as
        warnings or errors. False: no request is logged.""",
    ).tag(config=True)

    audit_log = Unicode(
        "",
        help="""File to which one line of JSON is appended for each request of a client to execute
        code: time, user, address, kernel, session, and the hash of the code. Empty for none. See
        docs/monitoring.md.""",
    ).tag(config=True)
    audit_code = CaselessStrEnum(
        [str(code) for code in AuditCode],
        "hash",
        help="""`hash`: `audit_log` has the SHA-256 of the code. `text`: also the code itself, which
        may contain secrets.""",
    ).tag(config=True)

    @validate("metrics_token")
    def _valid_metrics_token(self, proposal: dict[str, Any]) -> str:
        return checked("KbridgeApp.metrics_token", check_token, proposal["value"])

    @validate("metrics_ip")
    def _valid_metrics_ip(self, proposal: dict[str, Any]) -> str:
        return checked("KbridgeApp.metrics_ip", check_ip, proposal["value"])
