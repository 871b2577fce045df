"""The types of file systems, from lists of mounts as Linux shows them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kbridge.kernels.registry.file_system import file_system_of, shares_memory

MOUNTS = r"""
22 27 0:20 / /proc rw,nosuid shared:11 - proc proc rw
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
31 27 0:27 / /home rw,relatime shared:15 - nfs4 server:/home rw,vers=4.2
32 31 0:28 / /home/me/local rw shared:16 master:3 - xfs /dev/vdb rw
33 27 0:29 / /mnt/two\040words rw - fuse.sshfs me@there:/ rw
34 27 0:30 / /mnt/over rw - nfs server:/over rw
35 34 0:31 / /mnt/over rw - tmpfs tmpfs rw
""".lstrip()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/var/lib/kbridge/lab.sqlite", "ext4"),
        ("/home/me/lab.sqlite", "nfs4"),
        ("/home/me/local/lab.sqlite", "xfs"),
        ("/home/me/locally/lab.sqlite", "nfs4"),
        ("/mnt/two words/lab.sqlite", "fuse.sshfs"),
        ("/mnt/over/lab.sqlite", "tmpfs"),
    ],
)
def test_the_type_is_that_of_the_innermost_mount(tmp_path, path, found):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system_of(Path(path), mounts) == found


def test_a_link_leads_to_another_file_system(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    link = tmp_path / "link"
    link.symlink_to("/home/me")
    assert file_system_of(link / "lab.sqlite", mounts) == "nfs4"


def test_a_type_that_is_not_known(tmp_path):
    assert file_system_of(tmp_path, tmp_path / "none") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mounts")
def test_the_file_system_of_this_machine():
    assert file_system_of(Path("/proc/self/status")) == "proc"
    assert not shares_memory(Path("/proc/self/status"))
