"""The reactions to failures of ssh, with a script in place of ssh."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kbridge.tunnel.ssh_command import CHANNELS, SshOptions
from kbridge.tunnel.supervisor import TunnelConfig, TunnelSupervisor
from tests.support.waiting import TIMEOUT, eventually

# Runs its LocalCommand as ssh does; $run counts its runs.
FAKE = """#!/bin/sh
for arg; do case $arg in LocalCommand=*) ready=${arg#LocalCommand=};; -L) ;; \
127.0.0.1:*) port=${arg#127.0.0.1:} port=${port%%:*};; esac; done
echo run >>"$0.runs"; run=$(wc -l <"$0.runs")
"""
STAY = "exec sleep 1000"
LOST = "echo 'Connection reset by peer' >&2; exit 255"

Fake = Callable[[str], TunnelSupervisor]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    """Start a supervisor whose `ssh` runs shell code; `$ready` and `$run` are set."""
    supervisors: list[TunnelSupervisor] = []

    def make(code: str) -> TunnelSupervisor:
        program = tmp_path / "ssh"
        program.write_text(FAKE + code)
        program.chmod(0o755)
        targets = dict.fromkeys(CHANNELS, "127.0.0.1:9")
        config = TunnelConfig(
            server="box",
            destination=["--", "box"],
            targets=targets,
            options=SshOptions(program=str(program)),
        )
        supervisors.append(
            TunnelSupervisor(config, changes.append, logging.getLogger("kbridge.tunnel"))
        )
        supervisors[-1].start()
        return supervisors[-1]

    changes: list[bool] = []
    yield make
    for supervisor in supervisors:
        supervisor.stop()
        supervisor.join()
    assert changes in ([True, False] * n for n in range(10))


def test_a_port_in_use_is_replaced_by_another(fake: Fake) -> None:
    taken = "echo channel_setup_fwd_listener_tcpip: cannot listen to port: $port >&2; exit 255"
    supervisor = fake(f"if [ $run -lt 3 ]; then {taken}; fi; $ready; {STAY}")
    assert supervisor.wait(1, TIMEOUT)


def test_ports_that_are_always_in_use_are_an_error(fake: Fake) -> None:
    supervisor = fake("echo x: cannot listen to port: $port >&2; exit 255")
    assert not supervisor.wait(1, TIMEOUT)
    assert "another program has taken a local port" in str(supervisor.error)


def test_a_first_attempt_that_fails_is_not_repeated(fake: Fake) -> None:
    supervisor = fake(LOST)
    assert not supervisor.wait(1, TIMEOUT)
    assert str(supervisor.error) == (
        "no ssh tunnel to box: ssh ended with code 255. Connection reset by peer"
    )


def test_later_attempts_are_made_until_one_succeeds(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = fake(
        f"case $run in 1) $ready; {LOST};; 2|3) {LOST};; esac; $ready; {STAY}",
    )
    assert supervisor.wait(2, TIMEOUT)
    said = [r for r in caplog.records if "opening it again" in r.getMessage()]
    pauses = [r.getMessage().rpartition(" in ")[2] for r in said if r.levelno == logging.WARNING]
    assert pauses == ["0 s", "0.5 s"]  # the third message is a repetition


def test_failed_logins_are_repeated_after_a_long_delay(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    denied = "echo 'box: Permission denied (publickey).' >&2; exit 255"
    fake(f"if [ $run = 1 ]; then $ready; {LOST}; fi; {denied}")
    eventually(lambda: "again in 60 s" in caplog.text, "it waits for long")


def test_an_ssh_that_ignores_sigterm_is_killed(fake: Fake) -> None:
    supervisor = fake("trap '' TERM; $ready; while :; do sleep 1000; done")
    assert supervisor.wait(1, TIMEOUT)
    supervisor.stop()
    supervisor.join()
    assert not supervisor.up
    assert supervisor.process is None


def test_the_log_keeps_no_control_characters(fake: Fake) -> None:
    supervisor = fake("printf 'evil \\033[2J words\\n' >&2; exit 1")
    assert not supervisor.wait(1, TIMEOUT)
    assert "evil ?[2J words" in str(supervisor.error)
