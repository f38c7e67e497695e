"""`overlaynet agent install` into an image, and the same image uninstalled: all of it but systemd."""

from __future__ import annotations

import io
import json
import os
import shutil

import click
import pytest
import yaml

from overlaynet.cli import agent
from overlaynet.cli.app import App
from overlaynet.cli.main import run
from overlaynet.errors import InstallFailed, ToolMissing
from overlaynet.install import contents, disk, machine, service
from overlaynet.install.machine import Service
from overlaynet.install.service import Done

pytestmark = pytest.mark.fake

CLEAN = agent._clean
"""The real one."""


@pytest.fixture
def image(tmp_path):
    root = tmp_path / "image"
    root.mkdir()
    return root


@pytest.fixture
def install(image, capsys):
    """Run it, and answer the exit code and the document."""

    def install(*words):
        capsys.readouterr()
        code = run(["agent", "install", "--root", str(image), "-o", "json", *words], App())
        return code, json.loads(capsys.readouterr().out)

    return install


def ops(document):
    return {item["path"]: item["op"] for item in document["files"]}


def at(image, path):
    return disk.below(image, path)


def everything(image):
    return {
        path.relative_to(image): path.readlink()
        if path.is_symlink()
        else (path.read_text(), path.stat().st_mode)
        for path in image.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_everything_is_written_once_and_a_second_time_changes_nothing(install, image):
    code, document = install()
    assert (code, document["kind"], document["service"]) == (0, "AgentInstall", None)
    assert set(ops(document).values()) == {"created"}
    written = everything(image)
    links_and_settings = len(contents.PROGRAMS) + len(contents.PAGES) + 2
    assert document["changes"] == len(written) == len(contents.SOURCES) + links_and_settings
    code, document = install()
    assert (code, document["changes"], document["files"], document["notes"]) == (0, 0, [], [])
    assert everything(image) == written


def test_yaml_holds_the_same_as_json(image, capsys):
    words = ["agent", "install", "--root", str(image), "-o", "yaml"]
    assert run(words, App()) == 0
    assert {item["op"] for item in yaml.safe_load(capsys.readouterr().out)["files"]} == {"created"}


def test_text_says_that_nothing_changed(image, capsys):
    words = ["agent", "install", "--root", str(image)]
    run(words, App())
    capsys.readouterr()
    assert run(words, App()) == 0
    assert capsys.readouterr().out == "0 changes\n"


def test_without_a_start_it_is_not_enabled_either(install, image):
    _, document = install("--no-start")
    assert not at(image, contents.ENABLED).is_symlink()
    assert str(contents.ENABLED) not in ops(document)


def test_file_of_an_older_version_is_replaced(install, image):
    install()
    at(image, contents.UNIT_FILE).write_text(contents.marked("[Unit]\nDescription=older\n"))
    _, document = install()
    assert ops(document) == {str(contents.UNIT_FILE): "replaced"}
    assert "Type=notify" in at(image, contents.UNIT_FILE).read_text()


def test_file_that_an_administrator_changed_is_left_and_told(install, image):
    install()
    unit = at(image, contents.UNIT_FILE)
    unit.write_text(unit.read_text() + "# mine\n")
    code, document = install()
    assert (code, document["changes"]) == (0, 0)
    assert document["files"] == [
        {"path": str(contents.UNIT_FILE), "op": "kept", "reason": "somebody has written or changed it"}
    ]
    assert document["notes"] == [f"{contents.UNIT_FILE} stays as it is: somebody has written or changed it"]
    assert unit.read_text().endswith("# mine\n")


def test_settings_are_an_administrators_from_the_first_moment(install, image):
    install()
    settings = at(image, contents.SETTINGS)
    settings.write_text('[node]\nname = "mine"\n')
    _, document = install()
    assert (document["changes"], document["notes"]) == (0, [])
    assert settings.read_text() == '[node]\nname = "mine"\n'


def test_settings_that_are_given_take_the_place_of_those_there(install, image, tmp_path):
    install()
    settings, given = at(image, contents.SETTINGS), tmp_path / "given.toml"
    settings.chmod(0o600)
    given.write_text('[node]\nname = "given"\n')
    _, document = install("--config", str(given))
    assert ops(document) == {str(contents.SETTINGS): "replaced"}
    assert (settings.read_text(), settings.stat().st_mode & 0o777) == (given.read_text(), 0o600)
    assert install("--config", str(given))[1]["changes"] == 0


@pytest.mark.parametrize("where", ["given", "there"])
def test_settings_that_cannot_be_used_are_refused_before_anything_is_touched(install, image, tmp_path, where):
    bad = tmp_path / "bad.toml" if where == "given" else at(image, contents.SETTINGS)
    bad.parent.mkdir(parents=True, exist_ok=True)
    bad.write_text('[node]\nnmae = "x"\n')
    before = everything(image)
    code, document = install(*(["--config", str(bad)] if where == "given" else []))
    assert (code, document["error"]["code"]) == (2, "OVL-101")
    assert everything(image) == before


def test_folder_in_the_way_is_told_and_the_rest_installed(install, image):
    at(image, contents.TMPFILES).mkdir(parents=True)
    _, document = install()
    assert ops(document)[str(contents.TMPFILES)] == "kept"
    assert at(image, contents.UNIT_FILE).is_file()


def test_files_can_be_read_by_everybody_whatever_roots_umask(install, image):
    before = os.umask(0o077)
    try:
        install()
    finally:
        os.umask(before)
    files = [path for path in image.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    assert {path.stat().st_mode & 0o777 for path in image.rglob("*") if path.is_dir()} == {0o755}


def test_uninstall_leaves_settings_state_and_what_others_wrote(install, image):
    install()
    at(image, contents.NETWORK_MANAGER).write_text("mine")
    state = image / "var/lib/overlaynet/identity.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    done = service.uninstall(root=image)
    assert set(everything(image)) == {
        path.relative_to(image)
        for path in (at(image, contents.SETTINGS), at(image, contents.NETWORK_MANAGER), state)
    }
    assert done.notes == [f"{contents.NETWORK_MANAGER} stays as it is: somebody has written or changed it"]
    assert not (image / "usr/local/lib/systemd").exists()
    assert service.uninstall(root=image).count == 0


def test_purge_takes_settings_and_state_and_leaves_certificates_and_labs(install, image):
    install()
    kept = [image / "etc/overlaynet/ca.pem", image / "var/lib/overlaynet/labs/x/state.json"]
    gone = [image / "var/lib/overlaynet" / name for name in ("identity.json", "workloads.json", "etcd.json")]
    for path in (*kept, *gone):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    service.uninstall(root=image, purge=True)
    assert set(everything(image)) == {path.relative_to(image) for path in kept}


def test_what_the_service_kept_in_run_goes_and_labs_of_others_stay(install, image):
    install()
    run, flannel = image / "run/overlaynet", image / "run/flannel"
    for folder in (run, flannel):
        folder.mkdir(parents=True)
    (run / "agent.pid").touch()
    theirs = run / "labs/x/lab.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    service.uninstall(root=image)
    assert not flannel.exists()
    assert [path for path in run.rglob("*") if path.is_file()] == [theirs]
    shutil.rmtree(run / "labs")
    service.uninstall(root=image)
    assert not run.exists()


# --- a machine of which systemd is asked ---------------------------------------------------------


@pytest.fixture
def commands(monkeypatch, image):
    """A machine whose root is the image, with a systemd that does what it is told and writes it down."""
    told = []
    monkeypatch.setattr(service, "HERE", image)
    monkeypatch.setattr(service, "require_root", lambda what: None)
    monkeypatch.setattr(service, "LOCK", image / "xtables.lock")
    monkeypatch.setattr(service, "tool", lambda name: name)
    monkeypatch.setattr(machine, "booted", lambda: True)
    monkeypatch.setattr(machine, "run", lambda *argv: told.append(" ".join(argv)) or "")
    monkeypatch.setattr(machine, "unit_is_stale", lambda: False)
    monkeypatch.setattr(machine, "absent_modules", lambda names: [])
    monkeypatch.setattr(machine, "runs_from", lambda pid, folder: pid == 11)
    return told


def systemd_says(monkeypatch, *, before, after):
    monkeypatch.setattr(machine, "service", lambda: before)
    monkeypatch.setattr(machine, "settled", lambda _before, _timeout: after)


STOPPED = Service("inactive", "dead", "", 0, 0)
OLD = Service("active", "running", "ready", 10, 0)
NEW = Service("active", "running", "ready", 11, 0)
RESTART = f"systemctl --no-block restart {contents.UNIT}"


def test_first_install_reads_the_units_again_and_starts(commands, image, monkeypatch):
    systemd_says(monkeypatch, before=STOPPED, after=NEW)
    done = service.install(root=image)
    assert (commands[0], commands[-1], done.started) == ("systemctl daemon-reload", RESTART, True)


def test_service_that_runs_from_these_programs_is_not_restarted_for_nothing(commands, image, monkeypatch):
    systemd_says(monkeypatch, before=STOPPED, after=NEW)
    service.install(root=image)
    commands.clear()
    systemd_says(monkeypatch, before=NEW, after=NEW)
    done = service.install(root=image)
    assert (commands, done.count, done.service) == ([], 0, NEW)


@pytest.mark.parametrize("why", ["programs", "unit file", "settings"])
def test_service_is_restarted_for_new_programs_unit_or_settings(commands, image, monkeypatch, tmp_path, why):
    systemd_says(monkeypatch, before=STOPPED, after=NEW)
    service.install(root=image)
    commands.clear()
    given = tmp_path / "given.toml"
    given.write_text('[node]\nname = "given"\n')
    if why == "unit file":
        at(image, contents.UNIT_FILE).write_text(contents.marked("older"))
    systemd_says(monkeypatch, before=OLD if why == "programs" else NEW, after=NEW)
    service.install(root=image, config=given if why == "settings" else None)
    assert RESTART in commands


def test_installation_that_was_interrupted_before_systemd_was_told_goes_on(commands, image, monkeypatch):
    systemd_says(monkeypatch, before=NEW, after=NEW)
    service.install(root=image)
    commands.clear()
    monkeypatch.setattr(machine, "unit_is_stale", lambda: True)
    service.install(root=image)
    assert commands == ["systemctl daemon-reload", RESTART]


def test_without_a_start_a_running_service_is_left_alone(commands, image, monkeypatch):
    systemd_says(monkeypatch, before=OLD, after=OLD)
    done = service.install(root=image, start=False)
    assert (RESTART in commands, done.started, done.service) == (False, False, OLD)


def test_without_systemd_it_is_refused_before_anything_is_touched(commands, image, monkeypatch):
    monkeypatch.setattr(machine, "booted", lambda: False)
    with pytest.raises(InstallFailed, match="systemd is not running here"):
        service.install(root=image)
    assert everything(image) == {}


def test_without_iptables_it_is_refused_before_anything_is_touched(commands, image, monkeypatch):
    def missing(name):
        raise ToolMissing(f"the program {name!r} is not installed")

    monkeypatch.setattr(service, "tool", missing)
    with pytest.raises(ToolMissing, match="iptables"):
        service.install(root=image)
    assert everything(image) == {}


@pytest.mark.parametrize(
    ("state", "code", "last"),
    [
        (NEW, 0, "1 change; the agent is ready: ready"),
        (Service("activating", "start", "starting; OVL-301 etcd", 11, 0), 0, "starting; OVL-301 etcd"),
        (Service("activating", "auto-restart", "", 0, 4), 1, "1 change; the agent is failing"),
    ],
    ids=["ready", "waiting", "failing"],
)
def test_exit_code_is_one_only_for_an_agent_that_keeps_failing(monkeypatch, capsys, state, code, last):
    monkeypatch.setattr(service, "install", lambda **_: Done([], service=state, started=True))
    assert run(["agent", "install"], App()) == code
    printed = click.unstyle(capsys.readouterr().out).splitlines()
    assert last in printed[0]
    assert ("try  journalctl -u overlaynet-agent -n 20" in printed) == (state is not NEW)


def test_only_root_uninstalls(monkeypatch, capsys):
    monkeypatch.setattr(service.os, "geteuid", lambda: 1000)
    assert run(["agent", "uninstall", "-y"], App()) == 3
    assert "OVL-201" in capsys.readouterr().err


def test_programs_are_removed_last_and_only_where_the_installation_put_them(monkeypatch, tmp_path):
    folder = tmp_path / "overlaynet"
    (folder / "1.0-abc" / "bin").mkdir(parents=True)
    monkeypatch.setattr(service, "VERSIONS", folder)
    service.remove_versions()  # this program is somewhere else
    assert (service.versions(), folder.exists()) == ([], True)
    monkeypatch.setattr(service.sys, "prefix", str(folder / "1.0-abc"))
    assert service.versions() == [str(folder / "1.0-abc")]
    service.remove_versions()
    assert not folder.exists()


@pytest.fixture
def steps(monkeypatch):
    """What uninstalling does, one after the other; nothing of it happens."""
    taken = []
    monkeypatch.setattr(service, "require_root", lambda what: None)
    monkeypatch.setattr(service, "stop", lambda: taken.append("stop"))
    monkeypatch.setattr(agent, "_clean", lambda: taken.append("clean"))
    monkeypatch.setattr(service, "uninstall", lambda *, purge: taken.append(f"purge={purge}") or Done([]))
    monkeypatch.setattr(service, "remove_versions", lambda: taken.append("programs"))
    return taken


def test_uninstall_stops_the_agent_then_cleans_the_kernel_then_removes_files(steps, capsys):
    assert run(["agent", "uninstall", "-y"], App()) == 0
    assert steps == ["stop", "clean", "purge=False", "programs"]


def test_uninstall_without_a_terminal_wants_the_word(steps, monkeypatch, capsys):
    monkeypatch.setattr(agent.sys, "stdin", io.StringIO())
    assert run(["agent", "uninstall"], App()) == 2
    assert "overlaynet agent uninstall --yes" in capsys.readouterr().err
    assert steps == []


def test_files_stay_where_the_kernel_could_not_be_cleaned(steps, monkeypatch, tmp_path, capsys):
    program = tmp_path / "bin" / "overlaynet-agent"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'a rule is stuck' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(agent, "_clean", CLEAN)
    monkeypatch.setattr(agent.sys, "prefix", str(tmp_path))
    assert run(["agent", "uninstall", "-y"], App()) == 3
    assert steps == ["stop"]
    assert "a rule is stuck" in capsys.readouterr().err
