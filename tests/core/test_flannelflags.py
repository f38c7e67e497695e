"""flannel's flags and environment become our settings, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlaynet.config import AgentConfig, load
from overlaynet.core.flannelflags import FLAGS, REFUSED, from_environment, from_flags, variable
from overlaynet.errors import ConfigError
from overlaynet_agent.__main__ import FLANNEL, _flannel_settings, _parser

pytestmark = pytest.mark.unit


def settings(*words: str) -> AgentConfig:
    return load(None, {}, _flannel_settings(_parser().parse_args(["run", *words])))


def test_flags_of_a_flannel_unit_file_mean_the_same_here():
    config = settings(
        "-etcd-endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379", "-etcd-prefix=/my/net",
        "--etcd-cafile", "/ca", "-etcd-certfile=/cert", "-etcd-keyfile=/key", "-iface=eth7", "-iface", "eth8",
        "-iface-regex=^eth", "-iface-can-reach=10.0.0.1", "-public-ip=10.0.0.9", "-ip-masq=false",
        "-subnet-file=/run/x.env", "-iptables-resync=7", "-healthz-port=8080", "-healthz-ip=127.0.0.1",
        "-kube-subnet-mgr=false", "-iptables-forward-rules",
    )  # fmt: skip
    etcd, node = config.etcd, config.node
    assert (etcd.endpoints[1], etcd.prefix) == ("https://10.0.0.2:2379", "/my/net")
    assert (etcd.ca, etcd.cert, etcd.key) == (Path("/ca"), Path("/cert"), Path("/key"))
    assert (node.interface, node.interface_regex) == (("eth7", "eth8"), ("^eth",))
    assert (str(node.interface_can_reach), str(node.public_ip)) == ("10.0.0.1", "10.0.0.9")
    assert (config.firewall.masquerade, config.firewall.resync_s) == (False, 7)
    assert (config.paths.subnet_file, config.health.listen) == (Path("/run/x.env"), ("127.0.0.1", 8080))


def test_switch_without_a_value_is_on():
    assert settings("-ip-masq").firewall.masquerade is True


def test_environment_counts_for_more_than_the_file_and_less_than_ours(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text('[etcd]\nprefix = "/file"\noverlay_prefix = "/file"\n[node]\nzone = "file"\n')
    environ = {"FLANNELD_ETCD_PREFIX": "/flannel", "FLANNELD_IFACE": "eth7", "FLANNELD_PUBLIC_IP": ""}
    environ["OVERLAYNET_NODE_INTERFACE"] = "eth8"
    config = load(file, environ, {}, from_environment(environ))
    assert (config.etcd.prefix, config.etcd.overlay_prefix) == ("/flannel", "/file")
    assert (config.node.interface, config.node.public_ip) == (("eth8",), None)


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_every_flag_is_taken(flag):
    assert getattr(_parser().parse_args(["run", f"-{flag}", "x"]), FLANNEL + flag) in ("x", ["x"])


@pytest.mark.parametrize("flag", sorted(REFUSED))
def test_flag_that_means_nothing_here_is_refused_with_what_to_do(flag):
    with pytest.raises(ConfigError, match=variable(flag)) as caught:
        from_environment({variable(flag): "x"})
    assert caught.value.next == (REFUSED[flag],)


def test_password_is_refused_without_being_shown():
    with pytest.raises(ConfigError, match="etcd-password") as caught:
        from_flags({"etcd-password": "hunter2"})
    assert "hunter2" not in str(caught.value.as_json())
    assert "etcd.password_file" in caught.value.next[0]


def test_misspelt_variable_is_refused():
    with pytest.raises(ConfigError, match="FLANNELD_ETCD_PREFX"):
        from_environment({"FLANNELD_ETCD_PREFX": "/x"})


def test_bad_value_is_told_with_the_name_it_was_given_under():
    environ = {"FLANNELD_PUBLIC_IP": "nowhere"}
    with pytest.raises(ConfigError, match="environment FLANNELD_PUBLIC_IP"):
        load(None, environ, {}, from_environment(environ))
