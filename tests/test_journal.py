"""Answers on disk, shared by processes: cut off anywhere, taken up by any number of them."""

import json
import random
from pathlib import Path

import pytest
import torch
from stand_ins import BigramModel, ByteTokenizer
from two_processes import run_on_processes

from strata.evaluation import evaluate

TOKENIZER = ByteTokenizer()

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


# --- one process ---------------------------------------------------------------------------------


class Interrupting(BigramModel):
    """Stops in the middle, as a killed process does."""

    calls_left = 10**9

    def score_branches(self, *arguments):
        if self.calls_left == 0:
            raise KeyboardInterrupt
        self.calls_left -= 1
        return super().score_branches(*arguments)


def evaluate_kept(model, documents, folder, weights="w1", **options):
    (result,) = evaluate(
        model, TOKENIZER, ["cloze"], documents=documents, limit=60, batch_tokens=1_024,
        journal=folder, weights=weights, progress=False, **options,
    ).values()  # fmt: skip
    return result


@pytest.fixture(scope="module")
def documents():
    words = ["Strata", "layers", "grain", "stone", "river", "slope", "valley"]
    return [
        " ".join(f"{words[(i * k) % 7]} {words[(i + k) % 7]}." for i in range(1, 90))
        for k in range(1, 12)
    ]


def interrupting(calls_left):
    model = Interrupting.that_writes("stone river slope", context_length=512)
    model.calls_left = calls_left
    return model


def test_an_interrupted_evaluation_goes_on_and_ends_as_if_nobody_had(documents, tmp_path):
    whole_model = interrupting(10**9)
    whole = evaluate_kept(whole_model, documents, tmp_path / "whole")
    n_batches = len(whole_model.rows)
    assert n_batches > 3
    with pytest.raises(KeyboardInterrupt):
        evaluate_kept(interrupting(2), documents, tmp_path / "cut")
    (path,) = (tmp_path / "cut").iterdir()
    path.write_bytes(path.read_bytes()[:-7])  # a line that was not written to its end
    second = interrupting(10**9)
    assert evaluate_kept(second, documents, tmp_path / "cut") == whole
    assert len(second.rows) == n_batches - 1  # of the two that were done, one lost its last line
    third = interrupting(0)
    assert evaluate_kept(third, documents, tmp_path / "cut") == whole  # asks nothing any more


def test_answers_of_another_configuration_or_arithmetic_are_not_taken(documents, tmp_path):
    evaluate_kept(interrupting(10**9), documents, tmp_path)
    other = interrupting(10**9)
    other.config.window_length = 7
    evaluate_kept(other, documents, tmp_path)
    assert len(other.rows) > 3
    coarse = interrupting(10**9)
    with torch.autocast("cpu", torch.bfloat16):
        evaluate_kept(coarse, documents, tmp_path)
    assert len(coarse.rows) > 3


def test_answers_of_other_weights_are_not_taken(documents, tmp_path):
    evaluate_kept(interrupting(10**9), documents, tmp_path)
    other = interrupting(10**9)
    evaluate_kept(other, documents, tmp_path, weights="w2")
    assert len(other.rows) > 3
    with pytest.raises(ValueError, match="certain weights"):
        evaluate_kept(other, documents, tmp_path, weights="")
