"""pyproject.toml, constraints.txt, environment.yml and the frame around them say the same."""

import importlib.util
import io
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
]
LOCKED = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_every_requirement_is_locked_once_at_a_version_that_satisfies_it(
    python: str, platform: str
) -> None:
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": platform,
    }
    for requirement in REQUIREMENTS:
        versions = [
            str(lock.specifier).removeprefix("==")
            for lock in LOCKED
            if canonicalize_name(lock.name) == canonicalize_name(requirement.name)
            and (lock.marker is None or lock.marker.evaluate(environment))
        ]
        assert len(versions) == 1, f"{requirement.name}: locked at {versions or 'no version'}"
        assert versions[0] in requirement.specifier, f"{requirement} is locked at {versions[0]}"


def test_the_lock_names_versions_and_neither_hashes_nor_places() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"--|://|@ |sha256", text)
    assert all(str(lock.specifier).startswith("==") for lock in LOCKED)
    assert [str(lock.specifier) for lock in LOCKED if lock.name == "torch"] == ["==2.13.0"]


def test_conda_installs_the_same_packages_on_the_same_pythons() -> None:
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(line for line in wanted if isinstance(line, str) and line.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    pip = next(line["pip"] for line in wanted if isinstance(line, dict))
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    assert {line for line in wanted if isinstance(line, str)} == {python, "pip"}


@pytest.mark.parametrize(
    "target", ["run", "test", "lint", "paper", "publish", "lab", "clean", "help"]
)
def test_make_has_the_target(target: str) -> None:
    shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")


def test_pre_commit_knows_the_tools_of_the_lock() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    tools = {re.findall(r"exec ([\w-]+)", hook["entry"])[0] for hook in hooks}
    assert tools <= {lock.name for lock in LOCKED}


# ---- tools/make_environment.py, which runs before anything is installed --------------------------

SPEC = importlib.util.spec_from_file_location("tool", ROOT / "tools" / "make_environment.py")
assert SPEC is not None
assert SPEC.loader is not None
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)


def test_the_environment_takes_the_pythons_that_the_project_takes() -> None:
    accepted = [minor for minor in range(6, 20) if TOOL.is_supported((3, minor))]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert accepted == [minor for minor in range(6, 20) if f"3.{minor}.0" in allowed]


def test_an_old_python_or_one_without_venv_is_told_what_to_install() -> None:
    assert "python3.12-venv" in TOOL.complaint((3, 9), True)
    assert "apt-get install python3-venv" in TOOL.complaint((3, 12), False)
    assert TOOL.complaint((3, 12), True) is None


def test_pip_keeps_to_indexes_that_it_was_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then PyTorch's own index is neither added nor asked whether it is there."""
    asked, configured = [], b""

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO()

    monkeypatch.setattr(TOOL.sys, "platform", "linux")
    monkeypatch.setattr(TOOL.shutil, "which", lambda name: None)  # no nvidia-smi
    monkeypatch.setattr(TOOL.urllib.request, "urlopen", answer)
    monkeypatch.setattr(
        TOOL.subprocess, "run", lambda *given, **options: SimpleNamespace(stdout=configured)
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)

    configured = b"global.index-url='https://index.example/simple'"
    assert TOOL.cpu_index() == []
    configured = b""
    with monkeypatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", "/wheels")
        assert TOOL.cpu_index() == []
    assert asked == []
    assert TOOL.cpu_index() == ["--extra-index-url", TOOL.TORCH_CPU_INDEX]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("driver", "capability", "build"),
    [
        (580, (7, 5), ""),
        (595, (12, 0), ""),
        (570, (9, 0), "cu126"),
        (525, (8, 0), "cu126"),
        (580, (7, 0), "cu126"),  # a V100, which CUDA 13 knows no more
        (570, (10, 0), None),  # a B200, which CUDA 12.6 did not know yet
        (470, (8, 0), None),
    ],
)
def test_the_build_of_torch_is_one_that_the_driver_and_the_gpu_take(
    driver: int, capability: tuple[int, int], build: str | None
) -> None:
    assert TOOL.cuda_build(driver, capability) == build


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("580.95.05, 9.0\n580.95.05, 9.0\n", []),
        ("550.54.15, 8.0\n", ["--extra-index-url", TOOL.TORCH_INDEX + "cu126"]),
        ("[N/A], [N/A]\n", []),
    ],
)
def test_an_old_driver_gets_an_older_cuda_without_the_locks_packages_of_the_newer(
    said: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SimpleNamespace(stdout=said.encode(), returncode=0)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(TOOL.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(TOOL, "pip_has_indexes", lambda: False)
    monkeypatch.setattr(TOOL.subprocess, "run", lambda *given, **options: asked)
    monkeypatch.setattr(TOOL.urllib.request, "urlopen", lambda url, timeout: io.BytesIO())
    given, constraints = TOOL.torch_options(str(tmp_path))
    assert given == options
    lines = Path(constraints).read_text().splitlines()
    assert any(line.startswith("nvidia-") for line in lines) == (not options)
    assert "torch==2.13.0" in lines


def test_a_gpu_that_no_build_of_torch_takes_leaves_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TOOL, "pip_has_indexes", lambda: False)
    monkeypatch.setattr(TOOL, "gpus", lambda: [(470, (8, 0))])
    monkeypatch.setattr(TOOL.urllib.request, "urlopen", lambda url, timeout: io.BytesIO())
    index = ["--extra-index-url", TOOL.TORCH_CPU_INDEX]
    assert TOOL.torch_options(str(tmp_path)) == (index, "constraints.txt")
    assert "No build of torch takes this GPU" in capsys.readouterr().out


def test_a_training_machine_gets_what_the_project_depends_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert TOOL.dependencies() == PROJECT["dependencies"]


def test_the_environment_is_not_made_again_when_nothing_changed(tmp_path: Path) -> None:
    """`make` with a fresh stamp starts nothing but the target itself."""
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / ".ready").touch()
    shown = subprocess.run(
        ["make", "-n", "lint", f"VENV={folder}", f"PYTHON={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "make_environment" not in shown
