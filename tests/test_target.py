"""What a person writes of a target is read strictly, and nothing of it becomes an option of ssh.

Also the machine of one's own that other tests stand on: what it refuses, cuts and leaves behind.
"""

import re
import shutil
import socket
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import pytest

from strata.transfer.connection import Connection
from strata.transfer.loopback import Loopback
from strata.transfer.rules import TransferError
from strata.transfer.target import Target, find_target, surroundings, targets_file


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's targets.toml, which is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "strata").mkdir(parents=True)
    return tmp_path / "config" / "strata" / "targets.toml"


def ssh(target: Target, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*target.ssh(), target.host, target.command(list(words))],
        env=surroundings(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


# ---- What is written on the command line --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "folder"),
    [
        ("me@gpu.example.org:strata", "me@gpu.example.org", "strata"),
        ("gpu:~/strata", "gpu", "strata"),
        ("gpu:/scratch/a: b", "gpu", "/scratch/a: b"),
        ("gpu:-far side's $HOME", "gpu", "-far side's $HOME"),
        ("[2001:db8::1]:strata", "[2001:db8::1]", "strata"),
        ("me@[fe80::1%eth0]:/x", "me@[fe80::1%eth0]", "/x"),
        ("me@example.org@bastion:x", "me@example.org@bastion", "x"),
    ],
)
def test_a_target_is_a_host_and_a_folder(text: str, host: str, folder: str) -> None:
    assert find_target(text) == Target(host, folder)


@pytest.mark.parametrize(
    "text",
    [
        "host:", ":folder", "-oProxyCommand=x:folder", "me@-oProxyCommand=x:folder", "a b:c",
        "host;reboot:x", "me@:x", "ssh://host/x", "host\n:x", "a/b:c",
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="user@host:folder"):
        find_target(text)


@pytest.mark.parametrize("text", ["host:~you/x", "host:~", "host:a\nb"])
def test_a_folder_must_be_one_that_no_shell_has_to_find(text: str) -> None:
    with pytest.raises(ValueError, match=r"target\.folder = "):
        find_target(text)


# ---- targets.toml -------------------------------------------------------------------------------


def test_a_name_stands_for_all_that_its_table_says(configuration: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    configuration.write_text(
        f"""
        [gpu]
        host = "me@gpu.example.org"
        folder = "~/strata"
        port = 2222
        key = '{key}'
        ssh_options = ["ProxyJump=login.example.org", "Compression yes"]
        python = "python3.12"
        setup = "module load cuda"
        scheduler = "slurm"
        sbatch = ["--gpus=4", "-t60"]
        environment = "present"
        preset = "small"
        [plain]
        host = "gpu"
        folder = "/scratch/me"
        """
    )
    assert find_target("plain") == Target("gpu", "/scratch/me")
    gpu = find_target("gpu")
    assert gpu == Target(
        "me@gpu.example.org", "strata", 2222, str(key),
        ("ProxyJump=login.example.org", "Compression yes"), "", "python3.12", "present",
        "module load cuda", "slurm", ("--gpus=4", "-t60"), "small",
    )  # fmt: skip
    assert gpu.ssh()[4:12] == [
        "-o", "ProxyJump=login.example.org", "-o", "Compression yes", "-p", "2222", "-i", str(key)
    ]  # fmt: skip


def test_the_table_that_the_documentation_shows_is_one(
    configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
    found = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert found
    configuration.write_text(found[1])
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (".ssh/id_gpu", "projects/ssh_config"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    gpu = find_target("gpu")
    assert all(getattr(gpu, field.name) for field in fields(Target))


def test_targets_are_in_the_home_folder_where_nothing_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for nothing in (None, ""):
        if nothing is None:
            monkeypatch.delenv("XDG_CONFIG_HOME")
        else:
            monkeypatch.setenv("XDG_CONFIG_HOME", nothing)
        assert targets_file() == tmp_path / ".config" / "strata" / "targets.toml"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('folder = "x"', "host is missing"),
        ('host = "x"', "folder is missing"),
        ('host = ""\nfolder = "x"', "target.host = ''"),
        ('host = "-oProxyCommand=x"\nfolder = "x"', "target.host = '-oProxyCommand=x'"),
        ('host = "::1"\nfolder = "x"', "[brackets]"),
        ('host = "a"\nfolder = ""', "target.folder = ''"),
        ("host = 5\nfolder = 'x'", "target.host = 5: expected text"),
        ("{ok}\nfolders = 'x'", "unknown field 'folders'; did you mean 'folder'"),
        ("{ok}\nport = 70000", "target.port = 70000: expected a whole number from 0 to 65535"),
        ("{ok}\nport = '22'", "target.port = '22': expected a whole number"),
        ("{ok}\nport = true", "target.port = True"),
        ("{ok}\nkey = '/nowhere/id'", "target.key = '/nowhere/id': expected the path of a file"),
        ("{ok}\nkey = 'id'", "target.key = 'id'"),
        ("{ok}\nssh_config = '/nowhere/c'", "target.ssh_config = '/nowhere/c'"),
        ("{ok}\nssh_options = ['-v']", "target.ssh_options = '-v'"),
        ("{ok}\nssh_options = 'Compression=yes'", "target.ssh_options = 'Compression=yes'"),
        ("{ok}\npython = '-c'", "target.python = '-c'"),
        ("{ok}\nenvironment = 'conda'", "target.environment = 'conda': expected one of 'venv'"),
        ("{ok}\nscheduler = 'pbs'", "target.scheduler = 'pbs': expected one of 'none', 'slurm'"),
        ("{ok}\nscheduler = 'slurm'\nsbatch = ['gpu']", "target.sbatch = 'gpu'"),
        ("{ok}\nsbatch = ['--gpus=4']", 'expected scheduler = "slurm" with it'),
        ("{ok}\npreset = 'nanno'", "did you mean 'nano'"),
        ("{ok}\nport = \nkey = ''", "line 4"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_file(
    table: str, told: str, configuration: Path
) -> None:
    ok = 'host = "gpu"\nfolder = "x"'
    configuration.write_text("[gpu]\n" + table.replace("{ok}", ok))
    with pytest.raises(ValueError) as raised:  # noqa: PT011  what it says is the test
        find_target("gpu")
    said = str(raised.value)
    assert told in said
    assert said.startswith(str(configuration))
    assert "[gpu]" in said or "line" in told
    assert "\n" not in said


def test_a_name_that_is_not_there_lists_those_that_are(configuration: Path) -> None:
    with pytest.raises(ValueError, match=r"user@host:folder, or a name from .*targets.toml"):
        find_target("gpu")
    configuration.write_text('[gpu]\nhost = "x"\nfolder = "x"\n[cluster]\n[folder]\n')
    with pytest.raises(ValueError, match=r"one of gpu, cluster, folder .*did you mean 'gpu'"):
        find_target("gpuu")
    configuration.write_text('gpu = "me@x:y"')
    with pytest.raises(ValueError, match=r"expected a table"):
        find_target("gpu")


# ---- What ssh is told ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "added"),
    [
        ("", {"ConnectTimeout", "ServerAliveInterval", "ControlPath"}),
        ("ConnectTimeout 5", {"ServerAliveInterval", "ControlPath"}),
        ("ServerAliveInterval 7\n ControlPath none", {"ConnectTimeout", "ControlPath"}),
        (
            "ControlPath {folder}/x\n ControlMaster no",
            {"ConnectTimeout", "ServerAliveInterval"},
        ),
    ],
)
def test_what_the_users_ssh_is_configured_to_do_is_left_to_it(
    machine: Loopback, tmp_path: Path, said: str, added: set[str]
) -> None:
    config = tmp_path / "ssh_config"
    text = machine.ssh_config.read_text().replace(" BatchMode yes\n", "")  # which Debian takes
    config.write_text(f"{text} {said.format(folder=tmp_path)}\n")  # for an interval of its own
    target = replace(machine.target(str(tmp_path / "far")), ssh_config=str(config))
    with Connection(target) as far:
        with pytest.raises(TransferError, match="not there"):
            far.ask("look", name="run")
        options = {option.partition("=")[0] for option in far.shared.ssh_options}
    assert options == added


def test_an_ssh_that_is_not_openssh_is_told_nothing_of_ours(
    machine: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "ssh"
    other.write_text('#!/bin/sh\nfor word; do [ "$word" != -G ] || exit 2; done\nexec ssh "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("STRATA_SSH_COMMAND", f"'{other}'")
    target = machine.target(str(tmp_path / "far"))
    with Connection(target) as far:
        with pytest.raises(TransferError, match="not there"):
            far.ask("look", name="run")
        assert far.shared == target


SHELLS = [
    shell
    for shell in ("sh", "bash", "dash", "ksh", "zsh", "tcsh", "fish")
    if shutil.which(shell) is not None
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "setup", ["", "FAR='a  b'; export FAR", "export FAR='a  b' # done", 'export FAR="a  b";']
)
def test_every_login_shell_passes_words_on_as_they_are(shell: str, setup: str) -> None:
    """sshd hands a command line to the login shell with -c."""
    words = ["printf", "%s|", "", "a b", "it's", '"$HOME"', "`id`", "\\n", "#x", "*", "é", "~"]
    target = Target("x", "x", setup=setup)
    done = subprocess.run(
        [shell, "-c", target.command(words)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("|") == [*words[2:], ""]
    if setup:
        line = target.command(["sh", "-c", 'printf %s "$FAR"'])
        done = subprocess.run([shell, "-c", line], capture_output=True, text=True, check=True)
        assert done.stdout == "a  b"


# ---- A machine of one's own ---------------------------------------------------------------------


def test_the_machine_has_the_variables_it_is_given_and_not_those_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_HERE", "1")
    folder = tmp_path / 'it\'s "a" $HOME %h é'
    with Loopback(folder, {"FAR_SIDE": 'x "y" é'}) as far:
        done = ssh(far.target("x"), "env")
        assert done.returncode == 0, done.stderr
        assert 'FAR_SIDE=x "y" é' in done.stdout
        assert "ONLY_HERE" not in done.stdout
    assert not list(folder.iterdir())


def test_a_line_that_is_cut_ends_ssh_and_the_next_one_holds(machine: Loopback) -> None:
    target = machine.target("x")
    line = subprocess.Popen(
        [*target.ssh(), target.host, "echo up; cat"], env=surroundings(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert line.stdout
    assert line.stdout.readline() == "up\n"
    machine.cut()
    assert line.wait(20) == 255
    line.communicate()
    assert ssh(target, "echo", "again").stdout == "again\n"


def test_a_machine_that_was_stopped_is_gone_until_it_is_restarted(machine: Loopback) -> None:
    target = machine.target("x")
    machine.stop()
    try:
        assert "Connection refused" in ssh(target, "true").stderr
    finally:
        machine.restart()
    assert ssh(target, "true").returncode == 0


def test_nothing_listens_and_no_sshd_runs_when_the_machine_is_gone(tmp_path: Path) -> None:
    with Loopback(tmp_path) as far:
        target, port = far.target("x"), far.port
        line = subprocess.Popen(
            [*target.ssh(), target.host, "echo up; sleep 20"], env=surroundings(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert line.stdout
        line.stdout.readline()
        place = str(far.place)
    assert line.wait(20) == 255
    line.communicate()
    shown = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True)
    assert place not in shown.stdout
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("host", "to_ssh"),
    [("[::1]", "::1"), ("me@[fe80::1%eth0]", "me@fe80::1%eth0"), ("me@gpu", "me@gpu")],
)
def test_ssh_itself_wants_an_ipv6_address_without_brackets(host: str, to_ssh: str) -> None:
    assert Target(host, "folder").ssh_host == to_ssh


def test_a_setup_that_fails_is_said_and_nothing_runs_without_it(
    machine: Loopback, tmp_path: Path
) -> None:
    target = replace(machine.target(str(tmp_path / "far")), setup="no-such-module load cuda")
    with (
        Connection(target) as far,
        pytest.raises(TransferError, match="setup ends with status 127"),
    ):
        far.ask("look", name="run")
