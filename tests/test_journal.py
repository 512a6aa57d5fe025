"""Answers on disk, shared by processes: cut off anywhere, taken up by any number of them."""

import json
import random
from pathlib import Path

from two_processes import run_on_processes

EVALUATE = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from small_models import STRATA, random_model
from stand_ins import ByteTokenizer
from strata.config import TrainingConfig
from strata.evaluation import evaluate
from strata.training import choose_runtime
from strata.training.distributed import join_processes, leave_processes

torch.set_num_threads(1)
processes = join_processes(choose_runtime(TrainingConfig(device="cpu")))
model, passes = random_model(STRATA), []
score = model.score_branches
model.score_branches = lambda *asked: passes.append(0) or score(*asked)
result = evaluate(
    model, ByteTokenizer(), ["copa"], data_dir={folder!r}, batch_tokens=128, progress=False,
    journal={folder!r} + "/journal", weights="w", processes=processes,
)["copa"]
found = processes.gather((result.to_dict(), len(passes)))
if processes.first:
    print("found", json.dumps(found))
leave_processes()
"""


def evaluate_on(count: int, folder: Path) -> tuple[dict, list[int]]:
    """The result, which all processes have, and how many passes each made."""
    text = EVALUATE.format(tests=str(Path(__file__).parent), folder=str(folder))
    said = run_on_processes(folder / "evaluate.py", text, count)
    (line,) = [line for line in said.splitlines() if line.startswith("found ")]
    found = json.loads(line.removeprefix("found "))
    assert all(result == found[0][0] for result, _ in found)
    return found[0][0], [passes for _, passes in found]


def test_an_evaluation_cut_off_on_two_processes_goes_on_with_three_and_with_one(tmp_path):
    generator = random.Random(0)
    records = [
        {"premise": "".join(generator.choices("abcdefgh", k=9)), "question": "cause", "label": 0,
         "choice1": "up", "choice2": "on"}
        for _ in range(200)
    ]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "copa_val.jsonl").write_text(lines)
    whole, passes = evaluate_on(2, tmp_path)
    assert len(set(passes)) == 1  # a sharded model runs on all or on none
    assert passes[0] > 1
    kept = list((tmp_path / "journal").iterdir())
    assert len(kept) == 2
    for path in kept:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
    again, fewer = evaluate_on(3, tmp_path)
    assert again == whole  # to the last bit
    assert 0 < sum(fewer) < sum(passes)
    assert evaluate_on(1, tmp_path) == (whole, [0])  # nothing is left to ask
