"""Our sysctl.d file, read by the two programs that read such files, in a namespace of its own."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from helpers.privilege import requires_netns

from overlaynet import data

pytestmark = [pytest.mark.kernel, requires_netns]

FILE = data.path("systemd", "sysctl.conf")
READERS = [["/usr/lib/systemd/systemd-sysctl"], ["sysctl", "-q", "-p"]]
DEVICES = (
    "ip link add cni0 type bridge; ip link add flannel.1 type vxlan id 1 dstport 8472 dev lo local 127.0.0.1"
)
SHOW = "cat ip_forward conf/flannel.1/rp_filter conf/cni0/rp_filter conf/lo/rp_filter"


@pytest.mark.parametrize("reader", READERS, ids=lambda words: words[0].rpartition("/")[2])
@pytest.mark.parametrize("before", ["true", DEVICES], ids=["no device yet", "devices"])
def test_devices_of_ours_are_set_and_none_is_missed(reader, before):
    if shutil.which(reader[0]) is None:
        pytest.skip(f"{reader[0]} is not installed")
    settings = (
        "cd /proc/sys/net/ipv4; echo 0 >conf/all/rp_filter; echo 0 >conf/default/rp_filter; echo 0 >ip_forward"
    )
    script = f"{settings}; {before}; {' '.join(reader)} {FILE} || exit; {SHOW} 2>/dev/null"
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == (["1", "2", "2", "0"] if before == DEVICES else ["1", "0"])
