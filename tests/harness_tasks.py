"""lm-eval's own tasks over files of Strata's layout, for the tests and for benchmarks.

lm-eval keeps its task files, prompts and metrics; only where the data lies is changed, and its
layout is made into the hub's.
"""

import json
from pathlib import Path

import lm_eval
import yaml
from lm_eval.evaluator import evaluate as evaluate_by_harness
from lm_eval.tasks import TaskManager

# lm-eval's file of each task.
TASK_FILES = {
    "lambada": "lambada/lambada_openai.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "copa": "super_glue/copa/default.yaml",
    "winograd": "wsc273/default.yaml",
    "blimp": "blimp/{uid}.yaml",
    "wikitext2": "wikitext/wikitext.yaml",
}


def to_hub(name, record):
    """A record of Strata's layout as lm-eval's task expects it from the hub."""
    if name == "hellaswag":
        activity, _, rest = record["query"].partition(": ")
        return {"activity_label": activity, "ctx_a": rest, "ctx_b": "",
                "endings": record["choices"], "label": str(record["label"])}  # fmt: skip
    if name in ("arc_easy", "arc_challenge", "openbookqa"):
        letters = list("ABCDE"[: len(record["choices"])])
        return {
            "question_stem" if name == "openbookqa" else "question": record["question"],
            "choices": {"text": record["choices"], "label": letters},
            "answerKey": letters[record["label"]],
        }
    if name == "boolq":
        return {**record, "label": int(record["answer"])}
    if name == "winograd":
        first, second = record["context_options"]
        same = 0
        while first[: same + 1] == second[: same + 1]:
            same += 1
        before = first[: first.rfind(" ", 0, same) + 1]
        after = record["continuation"]
        return {
            "text": before + "she" + (" " if after[:1].isalnum() else "") + after,
            "pronoun": "she",
            "pronoun_loc": len(before),
            "options": [first[len(before) :], second[len(before) :]],
            "label": record["gold"],
        }
    if name == "wikitext2":
        return {"page": record["text"]}
    return record


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def harness_tasks(name, folder, asked, solved):
    """lm-eval's own tasks, with files in `folder` in the place of the hub's; most have one.

    Args:
        asked, solved: records in Strata's layout, to be asked and to be examples.
    """
    root = Path(lm_eval.__file__).parent / "tasks"
    paths = []
    for uid in dict.fromkeys(record.get("uid", "") for record in asked):
        mine = [record for record in asked if record.get("uid", "") == uid]
        data, train = folder / f"{name}{uid}.jsonl", folder / f"{name}{uid}-train.jsonl"
        write_lines(data, [to_hub(name, record) for record in mine])
        write_lines(train, [to_hub(name, record) for record in solved])
        files = {"train": str(train), "validation": str(data), "test": str(data)}
        if name == "blimp":  # the hub has its pairs under this name
            files = {"train": str(data)}
        own = root / TASK_FILES[name].format(uid=uid)
        changed = {
            "include": str(own),
            "task": f"{name}{uid}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        }
        paths.append(folder / f"{name}{uid}.yaml")
        paths[-1].write_text(yaml.safe_dump(changed))
    return TaskManager(include_defaults=False).load([str(path) for path in paths])


def asked_by_harness(lm, tasks):
    """lm-eval's scores by task, and its items in their order, each with the metrics it got."""
    found = evaluate_by_harness(lm, tasks, bootstrap_iters=0)
    scores = {
        task: {metric.removesuffix(",none"): value for metric, value in row.items()}
        for task, row in found["results"].items()
    }
    samples = [sample for task in tasks["tasks"] for sample in found["samples"][task]]
    return scores, samples
