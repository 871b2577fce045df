"""The program `jupyter-kernelgateway`, which `kbridge kernelgateway --install-alias` writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from traitlets import TraitError

from kbridge import __version__
from kbridge.server.cli.kernelgateway import install_alias, remove_alias
from tests.support.waiting import TIMEOUT

THEIRS = "#!/usr/bin/python3\nfrom kernel_gateway import launch_instance\nlaunch_instance()\n"


def test_the_alias_makes_jupyter_start_kbridge(tmp_path: Path) -> None:
    there = tmp_path / "a directory"
    there.mkdir()
    path = install_alias(there)
    env = os.environ | {"PATH": f"{there}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "kernelgateway", "--version"],
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr
    assert install_alias(there) == path, "writing it again is allowed"
    assert remove_alias(there) == path
    assert not path.exists()


def test_the_program_of_the_gateway_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "jupyter-kernelgateway"
    path.write_text(THEIRS)
    with pytest.raises(TraitError, match="from another package"):
        install_alias(tmp_path)
    with pytest.raises(TraitError, match="not written by --install-alias"):
        remove_alias(tmp_path)
    assert path.read_text() == THEIRS


def test_nothing_to_remove(tmp_path: Path) -> None:
    with pytest.raises(TraitError, match="not written by --install-alias"):
        remove_alias(tmp_path)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraitError, match="cannot write"):
        install_alias(tmp_path / "nowhere")


def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kbridge", "kernelgateway"),
            *("--install-alias", f"--alias-dir={tmp_path / 'nowhere'}"),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
