"""Imports go one way, from the configuration to the command line; read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "strata"

# What each part may import of the others. A new part has to be placed here.
CORE = {"storage", "config", "tokenizer", "data", "model"}
MAY_IMPORT: dict[str, set[str]] = {
    "storage": set(),
    "presets": set(),
    "fields": set(),
    "sections": {"fields"},
    "config": {"storage", "presets", "fields", "sections"},
    "tokenizer": {"storage"},
    "data": {"storage", "config", "tokenizer"},
    "model": {"config"},
    "training": CORE,
    "evaluation": CORE,
    "ablations": CORE | {"presets", "fields", "training", "evaluation"},
    "paper": {"storage", "config"},
    "workbook": {"storage", "config", "data", "paper", "training"},
    "transfer": {"storage", "fields", "config", "data", "training"},
    "drill": {"storage", "config", "tokenizer", "training"},
    "doctor": {"config", "data", "model", "training", "workbook"},
    "commands": CORE
    | {"training", "evaluation", "ablations", "paper", "workbook", "transfer", "drill", "doctor"},
    "cli": {"commands", "config"},
}
ORACLES = {"tiktoken", "tokenizers", "rustbpe", "lm_eval", "hypothesis", "pytest"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction; write strata.…"
            assert node.module
            # `from strata import paper` imports strata.paper
            inner = [f"strata.{alias.name}" for alias in node.names]
            names.update(inner if node.module == "strata" else [node.module])
    return names


FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.stem != "__init__"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_comes_before_it(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"place strata.{part} in MAY_IMPORT, and in DESIGN's order"
    parts = {name.split(".")[1] for name in imported(path) if name.startswith("strata.")}
    wrong = parts - MAY_IMPORT[part] - {part}
    assert not wrong, f"{path.name} imports {', '.join(sorted(wrong))}"


def test_the_order_has_no_circle() -> None:
    left = dict(MAY_IMPORT)
    while left:
        first = [part for part, needs in left.items() if not needs & left.keys()]
        assert first, f"a circle among {', '.join(left)}"
        for part in first:
            del left[part]


def test_the_core_does_without_the_tests_oracles() -> None:
    adapter = PACKAGE / "evaluation" / "harness.py"  # which is there for lm_eval alone
    for path in PACKAGE.rglob("*.py"):
        names = imported(path)
        found = {name.split(".")[0] for name in names} & ORACLES
        assert found == ({"lm_eval"} if path == adapter else set()), f"{path.name}: {found}"
        assert "strata.evaluation.harness" not in names, f"{path.name} imports the adapter"


def test_help_and_a_transfer_load_none_of_the_slow_packages() -> None:
    probe = (
        "import sys\n"
        "import strata.transfer  # which is not to wait for PyTorch either\n"
        "from strata.cli import main\n"
        "assert main(['--help']) == 0\n"
        "slow = {'torch', 'numba', 'matplotlib', 'papermill', 'pyarrow'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
