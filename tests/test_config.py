"""The agent's settings: which source wins, and what is refused where."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from overlaynet.config import FIELDS, SECTIONS, AgentConfig, load, parse
from overlaynet.errors import ConfigError

pytestmark = pytest.mark.unit

NAME = ("node", "name")
VARIABLE = {"OVERLAYNET_NODE_NAME": "from-env"}


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "agent.toml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path | None, environ=None, flags=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, flags or {})
    return f"{caught.value.message} | {caught.value.evidence}"


@pytest.mark.parametrize(
    ("file", "environ", "flags", "expected"),
    [
        pytest.param("", {}, {}, "", id="default"),
        pytest.param("from-file", {}, {}, "from-file", id="file-over-default"),
        pytest.param("from-file", VARIABLE, {}, "from-env", id="environment-over-file"),
        pytest.param("from-file", {"OVERLAYNET_NODE_NAME": ""}, {}, "from-file", id="empty-variable-is-none"),
        pytest.param(
            "from-file",
            {"OVERLAYNET_NODE_NAME": "from-env"},
            {NAME: "from-flag"},
            "from-flag",
            id="flag-over-all",
        ),
    ],
)
def test_precedence(write, file, environ, flags, expected):
    path = write(f'[node]\nname = "{file}"\n' if file else "")
    assert load(path, environ, flags).node.name == expected


def test_empty_file_is_all_defaults(write):
    assert load(write(""), {}) == AgentConfig()


def test_default_file_need_not_exist(monkeypatch, tmp_path):
    monkeypatch.setattr("overlaynet.config.DEFAULT_CONFIG_PATH", tmp_path / "none.toml")
    assert load(None, {}) == AgentConfig()


def test_every_key_of_the_file(write):
    config = load(
        write(
            """
            [node]
            name = "n1"
            interface = "eth1"
            public_ip = "192.0.2.7"
            zone = "a"
            labels = { rack = "7" }
            [etcd]
            endpoints = ["https://a:2379", "unix:///run/etcd.sock"]
            prefix = "/net/"
            overlay_prefix = "/ovl"
            ca = "/ca"
            cert = "/cert"
            key = "/key"
            username = "u"
            password_file = "/pw"
            [bridge]
            mode = "external"
            name = "br0"
            [firewall]
            backend = "nft"
            resync_s = 5
            masquerade = false
            vxlan_peers_only = true
            [paths]
            run = "/r"
            state = "/s"
            subnet_file = "/f"
            [log]
            level = "debug"
            format = "json"
            """
        ),
        {},
    )
    assert (config.node.name, config.node.public_ip, config.node.labels) == (
        "n1",
        ip_address("192.0.2.7"),
        {"rack": "7"},
    )
    assert config.etcd.endpoints == ("https://a:2379", "unix:///run/etcd.sock")
    assert (config.etcd.prefix, config.bridge.mode, config.firewall.resync_s) == ("/net", "external", 5.0)
    assert (config.firewall.masquerade, config.firewall.vxlan_peers_only) == (False, True)
    assert (config.paths.socket, config.paths.identity) == (Path("/r/agent.sock"), Path("/s/identity.json"))
    assert (config.log.level, config.log.format) == ("debug", "json")


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        pytest.param("OVERLAYNET_ETCD_ENDPOINTS", "http://a, http://b", ("http://a", "http://b"), id="list"),
        pytest.param("OVERLAYNET_NODE_LABELS", "a=b,c=d", {"a": "b", "c": "d"}, id="table"),
        pytest.param("OVERLAYNET_FIREWALL_MASQUERADE", "False", False, id="false"),
        pytest.param("OVERLAYNET_FIREWALL_VXLAN_PEERS_ONLY", "1", True, id="one"),
        pytest.param("OVERLAYNET_FIREWALL_RESYNC_S", "2.5", 2.5, id="number"),
        pytest.param("OVERLAYNET_PATHS_RUN", "/x", Path("/x"), id="path"),
    ],
)
def test_environment_is_text_for_every_kind_of_value(write, variable, text, value):
    config = load(write(""), {variable: text})
    section, _, name = variable.removeprefix("OVERLAYNET_").lower().partition("_")
    assert getattr(getattr(config, section), name) == value


def test_every_setting_has_a_reader():
    settings = {(section, name) for section, make in SECTIONS.items() for name in make.__dataclass_fields__}
    assert FIELDS.keys() == settings


@pytest.mark.parametrize(
    ("text", "place"),
    [
        pytest.param("[nodes]\n", "unknown key 'nodes'", id="section"),
        pytest.param("[node]\nnmae = 'x'\n", "unknown key 'node.nmae'", id="key"),
        pytest.param("node = 3\n", "[node] must be a table", id="section-that-is-no-table"),
    ],
)
def test_unknown_key_is_refused_with_its_place(write, text, place):
    path = write(text)
    assert refusal(path).startswith(f"{path}: {place}")


def test_unknown_key_is_answered_with_the_known_ones(write):
    assert "known here: node.adopt_lease, node.instance, node.interface, node.interface_can_reach" in refusal(
        write("[node]\nnmae = 'x'\n")
    )


BAD = [
    pytest.param("node.name", '""', id="empty-name"),
    pytest.param("node.name", '"Node"', id="upper-case-name"),
    pytest.param("node.name", '"etcd"', id="reserved-name"),
    pytest.param("node.name", "3", id="name-that-is-no-text"),
    pytest.param("node.interface", '"sixteen-bytes-xx"', id="interface-too-long"),
    pytest.param("node.interface", '"a/b"', id="interface-with-a-slash"),
    pytest.param("node.public_ip", '"300.1.1.1"', id="address"),
    pytest.param("node.labels", "{ a = 1 }", id="label-that-is-no-text"),
    pytest.param("etcd.endpoints", "[]", id="no-endpoint"),
    pytest.param("etcd.endpoints", '["a:2379"]', id="endpoint-without-scheme"),
    pytest.param("etcd.endpoints", '["http://"]', id="endpoint-without-host"),
    pytest.param("etcd.endpoints", '["http://a:99999"]', id="endpoint-with-no-such-port"),
    pytest.param("etcd.endpoints", '["http://[::1"]', id="endpoint-with-half-an-address"),
    pytest.param("etcd.endpoints", "3", id="endpoints-that-are-no-list"),
    pytest.param("etcd.endpoints", '["http://root:hunter2@a:2379"]', id="endpoint-with-credentials"),
    pytest.param("node.public_ip", '"fd00::7"', id="address-that-is-not-ipv4"),
    pytest.param("node.public_ip", '"127.0.0.1"', id="address-nobody-else-can-reach"),
    pytest.param("etcd.prefix", '"net"', id="relative-prefix"),
    pytest.param("etcd.prefix", '"//"', id="empty-prefix"),
    pytest.param("etcd.ca", '"ca.pem"', id="relative-path"),
    pytest.param("bridge.mode", '"auto"', id="no-such-mode"),
    pytest.param("firewall.backend", '"ebtables"', id="no-such-backend"),
    pytest.param("firewall.resync_s", "0", id="too-often"),
    pytest.param("firewall.resync_s", "nan", id="not-a-number"),
    pytest.param("firewall.resync_s", "true", id="truth-is-no-number"),
    pytest.param("firewall.masquerade", '"maybe"', id="neither-true-nor-false"),
    pytest.param("firewall.masquerade", "1", id="a-number-is-no-truth"),
    pytest.param("log.level", '"loud"', id="no-such-level"),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_bad_value_is_refused_with_file_key_and_value(write, key, value):
    section, _, name = key.partition(".")
    path = write(f"[{section}]\n{name} = {value}\n")
    assert refusal(path).startswith(f"{path}: {key} ")
    assert "it is " in refusal(path)


def test_bad_variable_and_bad_flag_are_named(write):
    path = write("")
    assert refusal(path, {"OVERLAYNET_NODE_PUBLIC_IP": "x"}).startswith(
        "environment OVERLAYNET_NODE_PUBLIC_IP: node.public_ip "
    )
    assert refusal(path, {}, {NAME: "X"}).startswith("flag --node-name: node.name ")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('[etcd]\ncert = "/c"\n', id="certificate-without-key"),
        pytest.param('[etcd]\nusername = "u"\n', id="user-without-password"),
    ],
)
def test_settings_that_need_each_other(write, text):
    assert "belong together" in refusal(write(text))


def test_file_that_is_not_toml_is_refused_with_the_line(write):
    path = write("[node\n")
    assert refusal(path).startswith(f"config file {path} is not TOML | ")
    assert "line 1" in refusal(path)


def test_file_that_is_named_must_be_there_and_be_text(tmp_path, write):
    assert refusal(tmp_path / "none").startswith("there is no config file")
    path = write("")
    path.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(path)
    assert "cannot be read" in refusal(tmp_path)


def test_decoded_document_is_checked_alike():
    assert parse({"node": {"name": "n1"}}, "topology").node.name == "n1"
    with pytest.raises(ConfigError, match=r"topology: unknown key 'node\.nmae'"):
        parse({"node": {"nmae": "n1"}}, "topology")


def test_password_in_an_endpoint_is_not_repeated_in_the_error():
    with pytest.raises(ConfigError) as caught:
        load(None, {"OVERLAYNET_ETCD_ENDPOINTS": "http://root:hunter2@a:2379"})
    assert "hunter2" not in caught.value.message + caught.value.evidence


def test_password_in_place_of_its_file_is_not_repeated_in_the_error():
    with pytest.raises(ConfigError, match="absolute path") as caught:
        load(None, {"OVERLAYNET_ETCD_PASSWORD_FILE": "hunter2"})
    assert "hunter2" not in caught.value.message + caught.value.evidence


SECRETS = "[etcd]\nca = '/ca'\nusername = 'u'\npassword_file = 'credential:etcd-password'\n"


def test_credential_is_found_where_systemd_says(write):
    config = load(write(SECRETS), {"CREDENTIALS_DIRECTORY": "/run/credentials/x.service"})
    assert config.etcd.password_file == Path("/run/credentials/x.service/etcd-password")
    assert config.etcd.ca == Path("/ca")


def test_credential_of_the_agents_unit_is_found_by_others_too(write):
    config = load(write(SECRETS), {"OVERLAYNET_ETCD_CA": "credential:etcd-ca"})
    there = Path("/run/credentials/overlaynet-agent.service")
    assert (config.etcd.password_file, config.etcd.ca) == (there / "etcd-password", there / "etcd-ca")


@pytest.mark.parametrize("name", ["", "../shadow", "a/b", ".", "..", "/etc/shadow", "a b"])
def test_name_that_is_no_credentials_is_refused(write, name):
    assert "credential:NAME" in refusal(write(f'[etcd]\npassword_file = "credential:{name}"\nusername = "u"\n'))


def test_misspelt_variable_is_refused_by_name():
    with pytest.raises(ConfigError, match="OVERLAYNET_ETCD_ENDPOINT: unknown key") as caught:
        load(None, {"OVERLAYNET_ETCD_ENDPOINT": "http://a:2379"})
    assert "etcd.endpoints" in caught.value.evidence


def test_variables_of_others_are_left_alone():
    load(None, {"OVERLAYNET_LAB": "mine", "OVERLAYNET_": "x", "ETCD_ENDPOINTS": "y"})


@pytest.mark.parametrize(
    ("text", "found"),
    [("127.0.0.1:9473", ("127.0.0.1", 9473)), ("[::1]:80", ("::1", 80))],
)
def test_health_listens_where_it_is_told(text, found):
    assert parse({"health": {"listen": text}}, "t").health.listen == found


@pytest.mark.parametrize(
    "text", ["9473", ":9473", "localhost:9473", "127.0.0.1", "127.0.0.1:0", "1.2.3.4:x", "a@1.2.3.4:5"]
)
def test_health_address_that_cannot_be_meant_is_refused(text):
    with pytest.raises(ConfigError, match=r"health\.listen"):
        parse({"health": {"listen": text}}, "t")
