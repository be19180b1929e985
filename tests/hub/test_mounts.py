from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from lorary.hub.cli.main import main
from lorary.hub.errors import NetworkFileSystemWarning
from lorary.hub.tables import mounts
from lorary.hub.tables.mounts import network_type, parse_mountinfo

MOUNTINFO = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
36 27 0:50 / /mnt/team rw,noatime shared:5 master:1 - nfs4 server:/export rw,vers=4.2
37 27 0:51 / /mnt/old\040share rw - cifs //server/share rw
38 36 0:52 / /mnt/team/local rw - xfs /dev/vdb rw
39 27 0:53 / /home/ana/remote rw - fuse.sshfs ana@host: rw
40 27 0:54 / /host rw - 9p host rw
41 27 0:55 / /pool rw - fuse.mergerfs pool rw
42 27 0:56 / /disk rw - fuseblk /dev/sdb1 rw
43 27 0:57 / /later rw - nfs a:/b rw
44 27 0:58 / /later rw - ext4 /dev/vdc rw
a line that is none
45 27 0:59 / /cut
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/registry.db", None),
        ("/mnt/team/registry.db", "nfs4"),
        ("/mnt/teams/registry.db", None),
        ("/mnt/team/local/registry.db", None),
        ("/mnt/old share/a/registry.db", "cifs"),
        ("/home/ana/remote/registry.db", "fuse.sshfs"),
        ("/host/registry.db", "9p"),
        ("/pool/registry.db", None),
        ("/disk/registry.db", None),
        ("/later/registry.db", None),
        ("/cut/registry.db", None),
    ],
)
def test_the_deepest_and_latest_mount_decides(path, kind):
    assert network_type(Path(path), parse_mountinfo(MOUNTINFO)) == kind


def test_no_mounts_are_no_network():
    assert network_type(Path("/a"), parse_mountinfo("")) is None
    assert network_type(Path("/a"), parse_mountinfo("\0\n - \n")) is None


@pytest.fixture
def on_nfs(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_path} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(mounts, "_MOUNTINFO", table)
    monkeypatch.setattr(mounts, "_warned", False)


@pytest.mark.usefixtures("on_nfs")
def test_the_first_write_of_a_process_warns(registry, tmp_path, recwarn):
    def told():  # others are of what earlier tests left open, whenever that is collected
        return [warning for warning in recwarn.list if warning.category is NetworkFileSystemWarning]

    registry.versions()
    assert not told()
    with pytest.warns(NetworkFileSystemWarning, match=r"registry\.db is on a network file system \(nfs4\)"):
        registry.add(make_checkpoint(tmp_path / "a"), name="a")
    registry.alias("a", "prod", 1)
    assert not told()


@pytest.mark.usefixtures("on_nfs")
def test_a_command_that_writes_says_it_in_one_line(registry, tmp_path, capsys):
    words = ["--registry", str(registry.path)]
    assert main(["list", *words]) == 0
    assert capsys.readouterr().err == ""
    assert main(["import", str(make_checkpoint(tmp_path / "a")), "--alias", "prod", *words]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lorary: warning: ")
    assert "nfs4" in line
