"""Every way in which a far machine cannot be used is one line that says what to do.

Against a real sshd. What a machine of another kind would do (a login shell that prints, or is no
POSIX shell, a home that is missing) is done by a ForceCommand, which sshd hands the command line
to as it does to a login shell.
"""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from small_disks import small_disk

from strata import transfer
from strata.transfer import Target, TransferError, carrying, contents, exchange
from strata.transfer.connection import LineCut, failure
from strata.transfer.loopback import Loopback

# What a login shell does with the command line; sftp is inside of sshd, and then a program.
LOGIN = (
    "case $SSH_ORIGINAL_COMMAND in internal-sftp) "
    "for server in /usr/lib/openssh /usr/libexec /usr/libexec/openssh; do "
    "[ -x $server/sftp-server ] && exec $server/sftp-server; done;; esac; "
    'eval "$SSH_ORIGINAL_COMMAND"'
)
SHELLS = [
    shell
    for shell in ("sh", "bash", "dash", "ksh", "zsh", "tcsh", "fish")
    if shutil.which(shell) is not None
]


@pytest.fixture
def far(machine: Loopback, tmp_path: Path) -> Target:
    return machine.target(str(tmp_path / "far"))


@contextlib.contextmanager
def login_shell(machine: Loopback, script: str) -> Iterator[None]:
    """Let this run in place of the login shell; the command line is in SSH_ORIGINAL_COMMAND."""
    path, configuration = machine.place / "login_shell", machine.place / "sshd_config"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    before = configuration.read_text()
    configuration.write_text(f'{before}ForceCommand "{path}"\n')
    try:
        yield
    finally:
        configuration.write_text(before)


def ask(target: Target) -> None:
    """Ask for a run that was never pushed: it is what one hears if all went well."""
    with pytest.raises(TransferError, match="mine is not there: push it first") as raised:
        transfer.status("mine", target)
    assert "\n" not in str(raised.value)


def told(target: Target) -> TransferError:
    """What is said when the far end cannot even be asked."""
    with pytest.raises(TransferError) as raised:
        transfer.status("mine", target)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{target.host}: ")
    return raised.value


# ---- It cannot be reached -----------------------------------------------------------------------


def test_a_host_that_nobody_knows(far: Target) -> None:
    assert "no such host" in str(told(replace(far, host="no..such")))


def test_a_port_that_is_closed_and_one_behind_which_nobody_speaks(far: Target) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = told(replace(far, port=port, ssh_options=("ConnectTimeout=1",)))
    for error in (said, told(replace(far, port=port))):
        assert "does not answer" in str(error)
        assert isinstance(error, LineCut)


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("IdentityFile", "another key", "refused your key: load it with ssh-add"),
        ("UserKnownHostsFile", "", "host key is not known yet: run `ssh loopback` once"),
        ("UserKnownHostsFile", "another key", "host key is not the one you know"),
    ],
)
def test_keys_that_do_not_fit(
    machine: Loopback, far: Target, tmp_path: Path, field: str, content: str, message: str
) -> None:
    place = tmp_path / "another"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place], check=True)
    if field == "UserKnownHostsFile":
        known = f"[127.0.0.1]:{machine.port} {place.with_suffix('.pub').read_text()}"
        place.write_text(known if content else "")
    lines = machine.ssh_config.read_text().splitlines()
    changed = [f" {field} {place}" if field in line else line for line in lines]
    configuration = tmp_path / "ssh_config"
    configuration.write_text("\n".join(changed))
    assert message in str(told(replace(far, ssh_config=str(configuration))))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-ssh", "ssh does not start here (exec: no-such-ssh: not found): install it"),
        ("ssh 'open", "mend STRATA_SSH_COMMAND"),
        ("ssh -o NoSuchOption=1", "Bad configuration option: nosuchoption"),
        ("sh -c 'kill -9 $$'", "the line was cut"),
        ("sh -c 'exit 255'", "the line was cut"),
        ("sh -c 'echo Welcome >&2; kill -9 $$'", "the line was cut"),
    ],
)
def test_an_ssh_that_does_not_start_or_dies(
    far: Target, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("STRATA_SSH_COMMAND", command)
    error = told(far)
    assert message in str(error)
    assert isinstance(error, LineCut) == ("line was cut" in message)


@pytest.mark.parametrize(
    ("said", "message", "cut"),
    [
        ("Timeout, server gpu not responding.\nended with status 255", "line was cut", True),
        ("client_loop: send disconnect: Broken pipe\nended with status 255", "line was cut", True),
        ("kex_exchange_identification: Connection closed by remote host", "line was cut", True),
        ("rsync error: timeout in data send/receive (code 30)\nio timeout after", "was cut", True),
        (
            "ssh: Could not resolve hostname gpu: Temporary failure in name resolution",
            "does not answer",
            True,
        ),
        ('rsync: [Receiver] mkdir "/x" failed: Permission denied (13)', "may write", False),
        ("me@gpu: Permission denied (publickey,password).", "refused your key", False),
        ("bash: line 1: rsync: command not found", "rsync is not found there", False),
        ("zsh:1: command not found: rsync", "rsync is not found there", False),
        ("protocol version mismatch -- is your shell clean?", "login shell prints", False),
        ("Received message too long 1466265708", "login shell prints", False),
        ("write: No space left on device (28)", "make room", False),
        ("something {odd}\n\nended with status 1", "gpu: something {odd}", False),
    ],
)
def test_what_programs_say_is_told_as_what_to_do(said: str, message: str, cut: bool) -> None:
    error = failure(Target("gpu", "x"), said)
    assert message in str(error)
    assert isinstance(error, LineCut) == cut


# ---- It can be reached, and not used ------------------------------------------------------------


@pytest.mark.parametrize("python", ["no-such-python3", "/nowhere/python3.12", "/etc/passwd"])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_python_that_is_not_there_or_does_not_start(
    machine: Loopback, far: Target, shell: str, python: str
) -> None:
    with login_shell(machine, f'exec {shell} -c "$SSH_ORIGINAL_COMMAND"'):
        assert f"Python was not found, or does not start ({python})" in str(
            told(replace(far, python=python))
        )


@pytest.mark.parametrize("setup", ["", "FAR=1; export FAR # done"])
@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell_will_do(machine: Loopback, far: Target, shell: str, setup: str) -> None:
    with login_shell(machine, f'exec {shell} -c "$SSH_ORIGINAL_COMMAND"'):
        ask(replace(far, setup=setup))


def test_a_login_shell_that_prints(machine: Loopback, far: Target) -> None:
    with login_shell(
        machine, 'echo "Welcome!"; echo strata:; echo busy >&2; eval "$SSH_ORIGINAL_COMMAND"'
    ):
        ask(far)


def test_an_account_that_may_not_log_in(machine: Loopback, far: Target) -> None:
    with login_shell(machine, "echo 'This account is currently not available.'; exit 1"):
        assert "ended with status 1 and said nothing" in str(told(far))


def test_a_python_that_is_too_old(far: Target, tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 9)\nexec(sys.argv[2])\n"
    )
    old.chmod(0o755)
    said = str(told(replace(far, python=str(old))))
    assert "its Python is 3.9 and Strata needs 3.11: name a newer one" in said


# ---- A push or a pull fails on its way ----------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 600 kB, and a source tree of one file in the place of Strata's own."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "code.py").touch()
    subprocess.run(["git", "init", "-q", source], check=True)
    monkeypatch.setattr(contents, "ROOT", source)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[training]\nmax_steps = 6\n")
    (folder / "provenance.json").write_text('{"corpus": "aa", "tokenizer": "bb"}')
    (folder / "tokenizer.json").write_bytes(os.urandom(600_000))
    return folder


def without_rsync(target: Target, folder: Path) -> Target:
    """The same target, where no rsync is found."""
    python = folder / "python-bare"
    python.write_text(f'#!/bin/sh\nPATH=/nowhere exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return replace(target, python=str(python))


def push_fails(home: Path, target: Target, message: str) -> TransferError:
    with pytest.raises(TransferError, match=message) as raised:
        transfer.push(home, target, progress=False)
    assert "\n" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("folder", ["/dev/null/x", "{tmp}/closed/x"])
def test_a_folder_in_which_nobody_may_write(
    machine: Loopback, home: Path, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    if "closed" in folder and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    target = machine.target(folder.replace("{tmp}", str(tmp_path)))
    push_fails(home, target, "name a folder in which you may write")


@pytest.mark.parametrize("tool", ["rsync", "sftp"])
def test_a_disk_that_is_full_there(
    machine: Loopback, home: Path, tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", "900k") as disk:
        target = machine.target(str(disk / "far"))
        if tool == "sftp":
            target = without_rsync(target, tmp_path)
        filler = disk / "filler"
        filler.write_bytes(bytes(500_000))
        push_fails(home, target, "disk is full: .* are to come and .* make room and start again")
        filler.unlink()
        with monkeypatch.context() as patch:  # somebody else fills it meanwhile

            def send_late(*arguments: object, **options: object) -> None:
                filler.write_bytes(bytes(500_000))
                carrying.send(*arguments, **options)

            patch.setattr(exchange, "send", send_late)
            push_fails(home, target, "full.* make room and start again")
        assert not (disk / "far" / "runs").exists()
        filler.unlink()
        transfer.push(home, target, progress=False)
        assert (disk / "far" / "runs" / "mine" / "tokenizer.json").read_bytes() == (
            home / "tokenizer.json"
        ).read_bytes()


def test_without_rsync_sftp_carries_the_same(
    far: Target, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transfer.push(home, without_rsync(far, tmp_path), progress=False)
    assert (Path(far.folder) / "runs" / "mine" / "tokenizer.json").read_bytes() == (
        home / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize("tool", ["rsync", "sftp"])
def test_a_login_shell_that_prints_where_files_should_pass(
    machine: Loopback, home: Path, tmp_path: Path, far: Target, tool: str
) -> None:
    target = far if tool == "rsync" else without_rsync(far, tmp_path)
    with login_shell(machine, f'echo "Welcome to the machine"; {LOGIN}'):
        push_fails(home, target, "login shell prints text where files should pass")


def test_a_line_that_is_cut_on_the_way_is_taken_up_again(
    machine: Loopback,
    home: Path,
    far: Target,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cuts = []

    def send_and_cut(*arguments: object, **options: object) -> None:
        if not cuts:
            cuts.append(machine.cut())
        carrying.send(*arguments, **options)

    monkeypatch.setattr(exchange, "send", send_and_cut)
    transfer.push(home, far, progress=False)
    assert cuts
    assert (Path(far.folder) / "runs" / "mine" / "tokenizer.json").exists()
    assert "the line was cut" in capfd.readouterr().err


def test_a_machine_that_is_gone_for_good(
    machine: Loopback, home: Path, far: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "PAUSES", (0.5, 0.5, 0.5))
    monkeypatch.setattr(exchange, "send", lambda *_arguments, **_options: machine.stop())
    try:
        assert isinstance(push_fails(home, far, "does not answer"), LineCut)
    finally:
        machine.restart()


def test_a_home_without_git_and_a_tree_that_git_does_not_know(
    far: Target, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(contents.ROOT / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    push_fails(home, far, "git must say what is source in .*not a git repository")
    monkeypatch.setenv("PATH", str(tmp_path))
    push_fails(home, far, "git .* is missing here: install it")


def test_what_is_no_run_or_was_never_pushed(far: Target, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.toml"):
        transfer.push(tmp_path, far)
    for attempt in (transfer.pull, transfer.run, transfer.status):
        with pytest.raises(TransferError, match="push"):
            attempt(tmp_path / "mine", far)
    assert not (tmp_path / "mine").exists()
