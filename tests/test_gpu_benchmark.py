"""The GPU benchmark is rehearsed on the CPU, as on a machine that has PyTorch and little else."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Of what Strata depends on, all that a GPU machine may lack. Python imports a `sitecustomize` that
# stands on its path before anything else.
MISSING = ("fsspec", "huggingface_hub", "matplotlib", "numba", "optuna", "papermill", "pyarrow",
           "scipy", "tensorboard", "tomli_w", "tyro")  # fmt: skip
FORGET = f"import sys\nsys.modules.update(dict.fromkeys({MISSING}))\n"


def test_every_part_runs_at_toy_size_on_a_bare_machine(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FORGET)
    output = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--output", str(output)]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())
    assert results["rehearsal"]
    assert len(results["parts"]) == 14
    for name, part in results["parts"].items():
        assert part["status"] == "done", (name, part)
        assert part["rows"], name
        if name.startswith("check"):
            assert all(row["met"] is not False for row in part["rows"]), (name, part)
    for kernels in results["profiles"].values():
        assert kernels
        shares = [kernel["share"] for kernel in kernels]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1.001
    assert "decisions" in results["machine"]


def test_without_a_gpu_it_says_what_to_do():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no CUDA GPU here: expected one, or --rehearse" in done.stderr
