"""lm-evaluation-harness and Strata agree: the same prompts, log-likelihoods, predictions, scores.

Every task that both have is asked three times: by `strata.evaluate`; by lm-eval through `StrataLM`;
and by lm-eval through `Ordinary`, a model written here, which feeds one request at a time to the
model and reads the whole table of logits. lm-eval uses its own task files, prompts and metrics;
only where the data lies is changed, and its layout is made into the hub's.

The items are a few sentences written for this file. With STRATA_EVAL_DATA, a folder as
`strata data tasks` makes it, they are the first STRATA_EVAL_LIMIT (100) of every task there.
"""

import gzip
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

lm_eval = pytest.importorskip("lm_eval")

from harness_tasks import TASK_FILES, asked_by_harness, harness_tasks, write_lines  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

from strata.config import ModelConfig  # noqa: E402
from strata.evaluation import TASKS, evaluate, generate, load_items  # noqa: E402
from strata.evaluation.harness import StrataLM  # noqa: E402
from strata.evaluation.sources import SOURCES, existing_file  # noqa: E402
from strata.evaluation.tasks import EMBEDDED, ZERO_SHOT_ONLY  # noqa: E402
from strata.model import Transformer  # noqa: E402
from strata.tokenizer import Tokenizer  # noqa: E402

REAL_DATA = os.environ.get("STRATA_EVAL_DATA", "")
LIMIT = int(os.environ.get("STRATA_EVAL_LIMIT", "100"))
SHOTS = 2

# --- items written for this file, in Strata's layout; the last two are the solved examples -------


def question(text, choices, label):
    return {"id": "", "question": text, "choices": choices, "label": label}


def pair(uid, good, bad):
    return {"uid": uid, "sentence_good": good, "sentence_bad": bad}


def premise(text, first, second, asked, label):
    return {
        "premise": text, "choice1": first, "choice2": second, "question": asked, "label": label
    }  # fmt: skip


QUESTIONS = [
    question("Which of these melts on a warm day?", ["a stone", "butter", "a nail", "glass"], 1),
    question("Bees carry pollen from one flower to", ["another.", "the sea.", "a rock."], 0),
    question("A lamp lights up when", ["it rains", "the circuit is closed"], 1),
    question("Water at −10 °C is", ["ice", "steam", "fog", "wind"], 0),
    question("What do roots take in?", ["music", "sand", "water", "light"], 2),
]
WRITTEN = {
    "lambada": [
        {"text": "The ferry left at noon. Nobody had told Marta, so she waited for the ferry"},
        {"text": 'He opened the tin.\n\n"Sardines again," he said. Every week it was sardines'},
        {"text": "Two rooks sat on the wall, and when one flew off there was one rook"},
        {"text": "The café was shut, and so they walked to the other café"},
        {"text": "She tuned the harp, tried a chord, and tuned the harp"},
    ],
    "hellaswag": [
        {"query": "Baking bread: A woman kneads dough on a board. She",
         "choices": ["puts it into a tin.", "sings to a horse on the hill.", "is a tin.", "swims."],
         "label": 0},
        {"query": "Home and Garden: How to wash a rug. Shake it. Take it outside first.",
         "choices": ["Beat it.", "Eat it with salt and pepper.", "Call it.", "Paint the sky."],
         "label": 0},
        {"query": "Rowing: Four men carry a boat to the river. They",
         "choices": ["bake it.", "read it aloud.", "set it on the water.", "fold it up twice."],
         "label": 2},
        {"query": "Chess: A girl looks at the board. She",
         "choices": ["drinks the clock.", "moves a bishop.", "bishops.", "waters the plants."],
         "label": 1},
        {"query": "Skiing: A man stands on a slope. He",
         "choices": ["turns into wool.", "pays.", "is made of doors.", "pushes off."], "label": 3},
    ],
    "piqa": [
        {"goal": "To open a jar", "sol1": "turn the lid", "sol2": "turn the table", "label": 0},
        {"goal": "Dry a wet boot?", "sol1": "put it in a pond", "sol2": "stuff it with newspaper",
         "label": 1},
        {"goal": "Keep soup warm", "sol1": "with a lid", "sol2": "with a fork", "label": 0},
        {"goal": "Sharpen a pencil", "sol1": "with a sponge", "sol2": "with a knife", "label": 1},
        {"goal": "Hang a picture", "sol1": "on a nail", "sol2": "on a cloud", "label": 0},
    ],
    "arc_easy": QUESTIONS,
    "arc_challenge": QUESTIONS[::-1],
    "openbookqa": [{**asked, "question": asked["question"].rstrip("?")} for asked in QUESTIONS],
    "winogrande": [
        {"sentence": "Ada lent Bo a pen because _ had two.", "option1": "Ada", "option2": "Bo",
         "answer": "1"},
        {"sentence": "The cup would not fit on the shelf as the _ was too tall .",
         "option1": "shelf", "option2": "cup", "answer": "2"},
        {"sentence": "Zoë thanked Ida, and _'s aunt smiled.", "option1": "Zoë", "option2": "Ida",
         "answer": "1"},
        {"sentence": "The dog chased the cat until _ was tired.", "option1": "dog",
         "option2": "cat", "answer": "1"},
        {"sentence": "Rain beat snow here, for _ is wet.", "option1": "rain", "option2": "snow",
         "answer": "1"},
    ],
    "boolq": [
        {"passage": "Owls -- Most owls hunt by night.", "question": "do owls hunt by night",
         "answer": True},
        {"passage": "A square has four sides.\nAll are equal.", "question": "is a square round",
         "answer": False},
        {"passage": "The bridge was built in 1901.", "question": "is the bridge old",
         "answer": True},
        {"passage": "Salt dissolves in water.", "question": "does salt dissolve", "answer": True},
        {"passage": "Lead is heavy.", "question": "does lead float", "answer": False},
    ],
    "copa": [
        premise("The glass fell.", "It broke.", "It sang.", "effect", 0),
        premise("The boy shivered. ", "The sun shone.", "The door stood open.", "cause", 1),
        premise("The candle went out.", "There was a draught.", "It was blue.", "cause", 0),
        premise("She added salt.", "The soup flew.", "The soup was salty.", "effect", 1),
        premise("They missed the bus.", "They walked.", "They hatched.", "effect", 0),
    ],
    "winograd": [
        {"context_options": ["The jug would not go into the box because the jug",
                             "The jug would not go into the box because the box"],
         "continuation": "was too wide.", "gold": 0},
        {"context_options": ["Ann waved to Jo, but Ann", "Ann waved to Jo, but Jo"],
         "continuation": "'s eyes were shut.", "gold": 1},
        {"context_options": ["The hen saw the fox. The hen", "The hen saw the fox. The fox"],
         "continuation": "hid.", "gold": 0},
        {"context_options": ["Tom beat Max at chess, so Tom", "Tom beat Max at chess, so Max"],
         "continuation": "was proud.", "gold": 0},
        {"context_options": ["Pia fed Kim since Pia", "Pia fed Kim since Kim"],
         "continuation": "was hungry.", "gold": 1},
    ],
    "blimp": [
        pair("anaphor_number_agreement", "The girls saw themselves.", "The girls saw herself."),
        pair("anaphor_number_agreement", "A man hurt himself.", "A man hurt themselves."),
        pair("drop_argument", "The hens ran.", "The hens devoured."),
        pair("wh_island", "Who did he say you met?", "Who did he ask why you met?"),
        pair("wh_island", "What did she claim I ate?", "What did she wonder why I ate?"),
        pair("", "", ""), pair("", "", ""),
    ],
    "wikitext2": [
        {"text": " \n = Tern = \n \n The tern ( a bird ) nests @-@ mostly - in May . It 's \n"
                 " = = Food = = \n \n Fish ; up to 1 @.@ 5 kg : \" sprat \" . \n"},
        {"text": " = Älv = \n \n A river of 3 @,@ 000 N or so ° here , they ' say ' . \n " * 20},
        {"text": ""}, {"text": ""},
    ],
}  # fmt: skip


def first_records(name):
    """The items to ask and the solved examples of a task, in Strata's layout; or None."""
    if not REAL_DATA:
        records = WRITTEN[name]
    else:
        path = existing_file(Path(REAL_DATA), TASKS[name].file)
        if path is None:
            return None
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        if name == "blimp":  # as many of each of its 67 sets, the sets one after another
            sets = {}
            for record in records:
                sets.setdefault(record["uid"], []).append(record)
            records = [record for group in sets.values() for record in group[: LIMIT // 67 + 1]]
        else:
            limit = min(LIMIT, 3) if name == "wikitext2" else LIMIT
            records = records[: min(limit, len(records) - SHOTS) + SHOTS]
    return records[:-SHOTS], records[-SHOTS:]


def nats_of(sample):
    """Log-likelihoods of an item's choices, or of its one text."""
    answers = sample["filtered_resps"]
    return [answer[0] if isinstance(answer, tuple | list) else answer for answer in answers]


# --- models --------------------------------------------------------------------------------------


class Ordinary(TemplateLM):
    """A model as a user of lm-eval would write it: a request at a time, every logit computed."""

    def __init__(self, model, tokenizer):
        super().__init__()
        self.model, self.text = model, tokenizer

    @property
    def eot_token_id(self):
        return self.text.document_separator

    def tok_encode(self, string, add_special_tokens=None, **_):
        before = [] if add_special_tokens is False else [self.eot_token_id]
        return before + self.text.encode(string)

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
        answers = []
        for _, context, continuation in requests:
            room = self.model.config.context_length + 1
            ids = torch.tensor((context + continuation)[-room:])
            n = len(continuation)
            table = self.model(ids[None, :-1])[0, -n:].double().log_softmax(-1)  # (n, vocab)
            nats = table.gather(1, ids[-n:, None]).sum()
            answers.append((float(nats), bool((table.argmax(-1) == ids[-n:]).all())))
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        totals = []
        for instance in requests:
            windows = get_rolling_token_windows(
                self.text.encode(instance.args[0]),
                self.eot_token_id,
                self.model.config.context_length,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(nats for nats, _ in self._loglikelihood_tokens(parts)))
        return totals

    @torch.no_grad()
    def generate_until(self, requests, disable_tqdm=False):
        texts = []
        for instance in requests:
            context, settings = instance.args
            ids = self.tok_encode(context)
            start = len(ids)
            for _ in range(settings["max_gen_toks"]):
                ids.append(int(self.model(torch.tensor([ids]))[0, -1].argmax()))
            text = self.text.decode(ids[start:])
            texts.append(min((text.split(stop)[0] for stop in settings["until"]), key=len))
        return texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The items in Strata's layout, a file for each task and one for its examples."""
    place = tmp_path_factory.mktemp("data")
    for name in TASK_FILES:
        if (found := first_records(name)) is not None:
            write_lines(place / f"{TASKS[name].file}.jsonl", found[0])
            write_lines(place / f"{name}_train.jsonl", found[1])
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return place


@pytest.fixture(scope="module")
def tokenizer(folder):
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())]
    return Tokenizer.train(iter(texts), vocab_size=4_096 if REAL_DATA else 500)


@pytest.fixture(scope="module")
def model(folder, tokenizer):
    """A model trained for a moment on the items, so that it is right about some of them."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, n_layers=2, n_heads=2, width=32, context_length=192
    )
    torch.manual_seed(0)
    model = Transformer(config)
    ids = []
    for name in TASK_FILES:
        for item in load_items(name, data_dir=folder) or []:
            ids += [tokenizer.document_separator, *tokenizer.encode("".join(item.requests[0]))]
    stream = torch.tensor(ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        rows = torch.randint(len(ids) - 65, (8,))[:, None] + torch.arange(65)
        loss = model.loss(stream[rows[:, :-1]], stream[rows[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


# --- the tests -----------------------------------------------------------------------------------


def test_every_task_that_lm_eval_has_is_compared():
    assert set(TASK_FILES) == set(TASKS) - set(EMBEDDED)


def compare(name, result, scores, samples):
    """Strata's result beside lm-eval's: item by item, then in sum."""
    assert len(result.items) == len(samples)
    for item, sample in zip(result.items, samples, strict=True):
        assert item.log_likelihoods == pytest.approx(nats_of(sample), abs=1e-4, rel=1e-5)
        if name in ("lambada", "wikitext2"):
            continue
        if result.metric == "acc":
            assert item.prediction == int(np.argmax(nats_of(sample)))
        if result.metric in ("acc", "acc_norm"):
            assert item.correct == bool(sample[result.metric])
    if name == "lambada":
        assert [item.correct for item in result.items] == [bool(s["acc"]) for s in samples]
    if name == "blimp":
        for task, row in scores.items():
            assert result.metrics[f"acc/{task.removeprefix('blimp')}"] == pytest.approx(row["acc"])
        return
    (row,) = scores.values()
    for metric in ("acc", "acc_norm", "perplexity", "bits_per_byte", "word_perplexity"):
        if metric in row:
            ours = "acc_greedy" if (name, metric) == ("lambada", "acc") else metric
            assert result.metrics[ours] == pytest.approx(row[metric], rel=1e-4), metric


@pytest.mark.parametrize("name", TASK_FILES)
def test_strata_and_lm_eval_agree_on_every_item(name, folder, model, tokenizer, tmp_path):
    if first_records(name) is None:
        pytest.skip(f"no {TASKS[name].file} in {REAL_DATA}")
    tasks = harness_tasks(name, tmp_path, *first_records(name))
    result = evaluate(model, tokenizer, [name], data_dir=folder, progress=False)[name]
    for lm in (Ordinary(model, tokenizer), StrataLM(model, tokenizer)):
        scores, samples = asked_by_harness(lm, tasks)
        compare(name, result, scores, samples)
        # the prompts themselves, blanks and all
        if name != "wikitext2":
            items = load_items(name, data_dir=folder)
            assert [list(item.requests) for item in items] == [s["arguments"] for s in samples]
    if result.metric == "acc_unconditional":
        compare_unconditional(name, result, folder, Ordinary(model, tokenizer))


def compare_unconditional(name, result, folder, lm):
    """lm-eval has no such rule; its model gives the log-likelihoods that the rule is made of."""
    for item, answered in zip(load_items(name, data_dir=folder), result.items, strict=True):
        pairs = [*item.requests, *((item.unconditional, text) for _, text in item.requests)]
        instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        nats = np.array([answer for answer, _ in lm.loglikelihood(instances, disable_tqdm=True)])
        given, alone = np.split(nats, 2)
        assert answered.prediction == int(np.argmax(given - alone))


def test_they_agree_on_what_is_greedy(folder, model, tokenizer):
    _, article = (item.requests[0][1] for item in load_items("wikitext2", data_dir=folder)[:2])
    pairs = [(article[: 200 + 3 * i], article[200 + 3 * i : 212 + 3 * i]) for i in range(30)]
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in [*pairs, ("", "Zebra")]]
    answers = StrataLM(model, tokenizer).loglikelihood(instances, disable_tqdm=True)
    ordinary = Ordinary(model, tokenizer).loglikelihood(instances, disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in ordinary]
    assert REAL_DATA or len({greedy for _, greedy in answers}) == 2  # learnt by heart, and not


class Drawn:
    """A sampler for lm-eval that hands out, item by item, the examples that Strata drew."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def sample(self, n, eval_doc=None, **_):
        documents = next(self.draws)
        assert len(documents) == n
        return documents


# lm-eval puts a second blank before the answers of LAMBADA's examples; Strata leaves the passages
# as they are.
FEW_SHOT = [name for name in TASK_FILES if name not in (*ZERO_SHOT_ONLY, "lambada")]


@pytest.mark.parametrize("name", FEW_SHOT)
def test_they_agree_with_solved_examples_before_the_items(name, folder, model, tokenizer, tmp_path):
    if first_records(name) is None:
        pytest.skip(f"no {TASKS[name].file} in {REAL_DATA}")
    tasks = harness_tasks(name, tmp_path, *first_records(name))
    (task,) = tasks["tasks"].values()
    documents = task.dataset["train"]
    if task.config.process_docs is not None:
        documents = task.config.process_docs(documents)
    # both examples are drawn for every item; their order is Strata's
    (folder / "twice").mkdir(exist_ok=True)
    write_lines(folder / "twice" / f"{TASKS[name].file}.jsonl", first_records(name)[1])
    solved = ["".join(i.requests[i.label]) for i in load_items(name, data_dir=folder / "twice")]
    items = load_items(name, data_dir=folder, shots=SHOTS)
    draws = []
    for item in items:
        places = [item.requests[0][0].index(text) for text in solved]
        draws.append([documents[int(number)] for number in np.argsort(places)])
    task.sampler = Drawn(draws)
    task.set_config("num_fewshot", SHOTS)

    scores, samples = asked_by_harness(Ordinary(model, tokenizer), tasks)
    assert [list(item.requests) for item in items] == [sample["arguments"] for sample in samples]
    result = evaluate(model, tokenizer, [name], data_dir=folder, shots=SHOTS, progress=False)[name]
    compare(name, result, scores, samples)


def test_hellaswags_published_records_become_the_prompts_that_lm_eval_makes_of_them(tmp_path):
    records = [
        {"ind": 4, "activity_label": "Mowing", "ctx_a": "A man starts a mower.", "ctx_b": "he",
         "endings": ["mows [substeps] the lawn.", "  sits down ", "sings  on", "is NASA."],
         "label": "2"},
        {"ind": 9, "activity_label": "Pets", "label": "0",
         "ctx_a": "[header] How to walk a dog [title] Buy a lead. [step] Any will do.", "ctx_b": "",
         "endings": ["Walk. [title] Rest.", "[step] Run.", "Café.", "Sit [stay]."]},
    ]  # fmt: skip
    write_lines(tmp_path / "hub.jsonl", records)
    changed = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / TASK_FILES["hellaswag"]),
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {part: str(tmp_path / "hub.jsonl") for part in ("train", "validation")},
            "cache_dir": str(tmp_path / "cache"),
        },
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(changed))
    loaded = TaskManager(include_defaults=False).load(str(tmp_path / "task.yaml"))
    (task,) = loaded["tasks"].values()
    theirs = [[doc["query"], doc["choices"], doc["gold"]] for doc in task.validation_docs()]
    ours = SOURCES["hellaswag"].records((tmp_path / "hub.jsonl").read_bytes())
    assert [[row["query"], row["choices"], row["label"]] for row in ours] == theirs


def test_lm_eval_lets_the_model_write_as_strata_does(model, tokenizer):
    settings = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}
    contexts = ["The ferry left", "To open a jar", "Owls"]
    instances = [Instance("generate_until", {}, (text, settings), 0) for text in contexts]
    lm = StrataLM(model, tokenizer)
    written = lm.generate_until(instances, disable_tqdm=True)
    assert written == Ordinary(model, tokenizer).generate_until(instances)
    drawn = Instance("generate_until", {}, ("Owls", {"temperature": 0.9, "top_p": 0.9}), 0)
    first, second = lm.generate_until([drawn, drawn], disable_tqdm=True)
    assert first != second
    assert first == generate(
        model, tokenizer, "Owls", max_new_tokens=256, temperature=0.9, top_p=0.9, seed=0
    )
    # one that is too long loses its beginning, and an empty one is a document of the model's own
    asked = [("Owls hunt. " * 400, settings), ("", settings)]
    instances = [Instance("generate_until", {}, one, 0) for one in asked]
    assert len(lm.generate_until(instances, disable_tqdm=True)) == 2
    unknown = Instance("generate_until", {}, ("Owls", {"num_beams": 4}), 0)
    with pytest.raises(ValueError, match="no way to generate with num_beams"):
        lm.generate_until([unknown], disable_tqdm=True)


def test_the_harness_makes_the_model_of_a_run_by_name(model, tokenizer, tmp_path, monkeypatch):
    from lm_eval.api.registry import get_model

    tokenizer.save(tmp_path / "tokenizer.json")
    monkeypatch.setattr(Transformer, "load", lambda run, device: model if run else None)
    made = get_model("strata").create_from_arg_string(
        f"run={tmp_path},bfloat16=True",
        {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"},  # which it says by default
    )
    assert made.tokenizer.identity == tokenizer.identity
    request = Instance("loglikelihood", {}, ("Owls hunt", " by night"), 0)
    ((coarse, _),) = made.loglikelihood([request], disable_tqdm=True)
    ((fine, _),) = StrataLM(model, tokenizer).loglikelihood([request], disable_tqdm=True)
    assert coarse == pytest.approx(fine, rel=0.05)
    assert coarse != fine
    with pytest.raises(ValueError, match="which run"):
        get_model("strata").create_from_arg_obj({}, {"device": "cpu"})
