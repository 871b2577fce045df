"""Signals that the parent of the tests ignores: nohup, shells (`pytest &`), some CI systems."""

from __future__ import annotations

import signal
import threading

__all__ = ["reset_ignored_signals"]

_DEFAULTS = {
    "SIGINT": signal.default_int_handler,
    "SIGHUP": signal.SIG_DFL,
    "SIGTERM": signal.SIG_DFL,
    "SIGQUIT": signal.SIG_DFL,
}


def reset_ignored_signals() -> list[str]:
    """Restore the default action of ignored signals; return their names.

    Child processes inherit ignored signals: servers would not end by SIGHUP, and kernels could not
    be interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    reset = []
    for name, handler in _DEFAULTS.items():
        number = getattr(signal, name, None)  # Windows lacks some
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
            reset.append(name)
    return reset
