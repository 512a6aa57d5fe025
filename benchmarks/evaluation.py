"""Items scored in a second, beside lm-eval driving the same model through an ordinary adapter.

    python benchmarks/evaluation.py --data ~/.cache/strata/evaluation

The model has a vocabulary of 86,400, a body of 10.6M parameters and random weights, which cost as
much as trained ones. It is asked the same items of HellaSwag, LAMBADA and BLiMP by
`strata.evaluate` and by lm-evaluation-harness. The adapter of the latter does what lm-eval's own
for published models does: it pads requests of like length to a rectangle, computes every logit,
takes the log-softmax and reads the targets off it, 16 requests at a time, or with --one-by-one also
one at a time, which is lm-eval's default. Whole calls are timed, from the files to the scores,
without lm-eval's own bootstrap, in seconds of CPU of one thread, which a busy machine stretches
less than those of the clock. Each takes its turn, round by round; ratios are medians. The
predictions have to be the same.

The folder is as `strata data tasks` makes it. The report goes to benchmarks/results/.
"""

import argparse
import gzip
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from measuring import RESULTS, machine, ratio, table, take_turns

from strata.config import Config, DataConfig, TrainingConfig
from strata.data import Corpus
from strata.data.preparation import prepare_tokenizer
from strata.evaluation import TASKS, TaskResult, evaluate
from strata.evaluation.sources import existing_file
from strata.model import Transformer
from strata.tokenizer import Tokenizer
from strata.training import choose_runtime
from strata.training.device import apply_runtime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from harness_tasks import asked_by_harness, harness_tasks, write_lines

SHAPE = {
    "model.n_layers": 6,
    "model.width": 384,
    "model.n_heads": 6,
    "model.context_length": 1_024,
}


class OrdinaryAdapter(TemplateLM):
    """What lm-eval's adapter for published models does, in its order."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, batch_size: int) -> None:
        super().__init__()
        self.model, self.text, self.rows = model, tokenizer, batch_size

    @property
    def eot_token_id(self) -> int:
        return self.text.document_separator

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object):
        before = [] if add_special_tokens is False else [self.eot_token_id]
        return before + self.text.encode(string)

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence, disable_tqdm: bool = False, **_: object):
        rows = [
            ((context + continuation)[-(self.model.config.context_length + 1) :], len(continuation))
            for _, context, continuation in requests
        ]
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number][0]))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        for start in range(0, len(order), self.rows):
            batch = order[start : start + self.rows]
            longest = max(len(rows[number][0]) for number in batch) - 1
            tokens = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, number in enumerate(batch):
                ids = rows[number][0][:-1]
                tokens[row, : len(ids)] = torch.tensor(ids)
            table = self.model(tokens.to(self.model.device)).log_softmax(dim=-1)
            for row, number in enumerate(batch):
                ids, n = rows[number]
                mine = table[row, len(ids) - 1 - n : len(ids) - 1]  # (n, vocab)
                wanted = torch.tensor(ids[-n:], device=mine.device)
                nats = mine.gather(1, wanted[:, None]).sum()
                answers[number] = (float(nats), bool((mine.argmax(-1) == wanted).all()))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False):
        raise NotImplementedError("no task here asks for it")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False):
        raise NotImplementedError("no task here asks for it")


def build_model(vocab_size: int) -> Transformer:
    config = Config().override({**SHAPE, "model.vocab_size": vocab_size})
    torch.manual_seed(0)
    model = Transformer(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def predictions_of(name: str, samples: list[dict]) -> list[int]:
    """lm-eval's choice at each item, by plain likelihood; for LAMBADA 0 where it is right."""
    if name == "lambada":
        return [0 if sample["acc"] else -1 for sample in samples]
    found = []
    for sample in samples:
        nats = [answer[0] for answer in sample["filtered_resps"]]
        found.append(nats.index(max(nats)))
    return found


def own_predictions(name: str, result: TaskResult) -> list[int]:
    if name == "lambada":
        return [item.prediction for item in result.items]
    return [item.log_likelihoods.index(max(item.log_likelihoods)) for item in result.items]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks' files")
    parser.add_argument("--items", type=int, default=40, help="of HellaSwag and LAMBADA")
    parser.add_argument("--pairs", type=int, default=1_000, help="of one of BLiMP's sets")
    parser.add_argument("--sets", type=int, default=1, help="of BLiMP")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one-by-one", action="store_true", help="also a request at a time")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)

    runtime = choose_runtime(TrainingConfig(device="cpu", threads=1))
    apply_runtime(runtime)
    tokenizer = prepare_tokenizer(Corpus.open("installed"), DataConfig())
    model = build_model(tokenizer.vocab_size).to(runtime.device)
    rows = []
    for name in ("hellaswag", "lambada", "blimp"):
        path = existing_file(arguments.data, TASKS[name].file)
        if path is None:
            raise FileNotFoundError(f"{arguments.data} has no {TASKS[name].file}.jsonl")
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        if name == "blimp":
            uids = list(dict.fromkeys(record["uid"] for record in records))[: arguments.sets]
            of_sets = [[record for record in records if record["uid"] == uid] for uid in uids]
            records = [record for one in of_sets for record in one[: arguments.pairs]]
        else:
            records = records[: arguments.items]
        rows += measure(name, records, model, tokenizer, arguments)
        print(table(HEADER, rows[-1:]), flush=True)
    command = "python benchmarks/evaluation.py --data DIR" + "".join(
        f" --{name} {getattr(arguments, name)}" for name in ("items", "pairs", "sets", "rounds")
    )
    report = (
        "# Scoring: items a second\n\n"
        f"{machine(['torch', 'lm_eval'])} One thread, CPU seconds, "
        f"{str(runtime.dtype).removeprefix('torch.')}. "
        f"{arguments.rounds} rounds, medians of the rounds' ratios; whole calls, from the files to "
        "the scores.\n\n" + table(HEADER, rows) + f"\n`{command}`\n"
    )
    output = arguments.output or RESULTS / f"evaluation-{date.today()}.md"
    output.write_text(report, encoding="utf-8")
    print(report)


HEADER = ["task", "items", "lm-eval's adapter", "its items/s", "Strata's items/s", "ratio",
          "other predictions", "largest difference, nats"]  # fmt: skip


def measure(
    name: str,
    records: list[dict],
    model: Transformer,
    tokenizer: Tokenizer,
    arguments: argparse.Namespace,
) -> list[list[object]]:
    """A row for each adapter."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_lines(folder / f"{TASKS[name].file}.jsonl", records)
        found: dict[str, object] = {}
        sizes = {"16 at a time": 16} | ({"one by one": 1} if arguments.one_by_one else {})

        def strata() -> None:
            found["strata"] = evaluate(
                model, tokenizer, [name], data_dir=folder, bootstrap_samples=1, progress=False
            )[name]

        def harness(label: str) -> None:
            work = Path(tempfile.mkdtemp(dir=folder))
            tasks = harness_tasks(name, work, records, records[:1])
            adapter = OrdinaryAdapter(model, tokenizer, sizes[label])
            found[label] = asked_by_harness(adapter, tasks)[1]

        contestants = {"strata": strata} | {
            label: lambda label=label: harness(label) for label in sizes
        }
        for contestant in contestants.values():  # warm
            contestant()
        seconds = take_turns(contestants, arguments.rounds, time.process_time)
    own: TaskResult = found["strata"]
    rows = []
    for label in sizes:
        samples = found[label]
        pairs = zip(own_predictions(name, own), predictions_of(name, samples), strict=True)
        differing = sum(a != b for a, b in pairs)
        difference = max(
            abs(nats - answer[0])
            for item, sample in zip(own.items, samples, strict=True)
            for nats, answer in zip(item.log_likelihoods, sample["filtered_resps"], strict=True)
        )
        rate = {who: len(records) / statistics.median(times) for who, times in seconds.items()}
        rows.append(
            [TASKS[name].title, len(records), label, rate[label], rate["strata"],
             ratio(seconds, "strata", label), differing, difference]
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
