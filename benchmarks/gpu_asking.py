"""A model that is asked and that writes: rows that branch, and the cache; right, and how fast?

Scoring is timed on questions of HellaSwag's shape, beside what an ordinary adapter does with the
same ones: a rectangle of padded rows, every logit, a log-softmax over all of them.
"""

import torch
from gpu_bench import Bench, Row, at_least, at_most, draw_tokens, random_model
from torch import Tensor

from strata.model import Transformer
from strata.model.masks import Tree
from strata.training.device import apply_runtime

CHOICES = 4
Branched = tuple[Tensor, Tree, Tensor, Tensor]


def draw_questions(vocabulary: int, count: int, context: int, ending: int) -> Tensor:
    """Token ids (count, CHOICES, context + ending); the choices of a question share its context."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, vocabulary, (count, CHOICES, context + ending), generator=generator)
    ids[:, :, :context] = ids[:, :1, :context]
    return ids


def branch(questions: Tensor, context: int) -> Branched:
    """A row a question: its context, then what is read of each ending; and what is asked."""
    count, choices, length = questions.shape
    read = length - 1 - context  # of each ending all but the last token
    tokens = torch.cat([questions[:, 0, :context], questions[:, :, context:-1].flatten(1)], dim=1)
    time = tokens.shape[1]
    starts = context + read * torch.arange(choices)
    depths = torch.cat([torch.arange(context), (context + torch.arange(read)).repeat(choices)])
    ends = torch.cat([torch.full((context,), time), (starts + read).repeat_interleave(read)])
    # the first token of an ending is asked of the context's last place
    own = starts[:, None] + torch.arange(read)
    asked = torch.cat([torch.full((choices, 1), context - 1), own], dim=1).flatten()
    order = asked.argsort(stable=True)
    places = (time * torch.arange(count)[:, None] + asked[order]).flatten()
    targets = questions[:, :, context:].flatten(1)[:, order].flatten()
    tree = Tree(depths.expand(count, time), ends.expand(count, time))
    return tokens, tree, places, targets


def on(device: torch.device, branched: Branched) -> Branched:
    tokens, tree, places, targets = branched
    moved = Tree(*(part.contiguous().to(device) for part in tree))
    return tokens.to(device), moved, places.to(device), targets.to(device)


def check_asking(bench: Bench) -> list[Row]:
    """Rows that branch beside rows of their own, and steps with a cache beside reading anew."""
    config = bench.checked()
    # rows of 128 or 384 places, which FlexAttention takes
    context, ending = (80, 13) if config.context_length >= 96 else (12, 6)
    model = random_model(config)
    questions = draw_questions(config.vocab_size, 8, context, ending)
    branched = branch(questions, context)
    rows = questions.flatten(0, 1)
    with torch.no_grad():
        exact, _ = model.score(rows[:, :-1], rows[:, 1:])
    exact = exact[:, -ending:].double().sum(dim=1)
    apply_runtime(bench.runtime)
    model = model.to(bench.device)
    with bench.runtime.autocast():
        tokens, tree, places, targets = on(bench.device, branched)
        nats, _ = model.score_branches(tokens, tree, places, targets)
        alone, _ = model.score(rows[:, :-1].to(bench.device), rows[:, 1:].to(bench.device))
        found = nats.view(8, -1).sum(dim=1).cpu().double()
        alone = alone[:, -ending:].sum(dim=1).view(8, -1).sum(dim=1).cpu().double()
        text = draw_tokens(config, 4, seed=4)[0][:, :24].to(bench.device)
        with torch.inference_mode():
            whole = model(text)
            cache = model.new_cache(4)
            parts = [model(text[:, :16], cache=cache)]
            parts += [model(text[:, step : step + 1], cache=cache) for step in range(16, 24)]
    exact = exact.view(8, -1).sum(dim=1)
    apart = (torch.cat(parts, dim=1) - whole).norm() / whole.norm()
    from_alone, from_exact = (((found / one) - 1).abs().max().item() for one in (alone, exact))
    return [
        at_most("rows that branch beside rows alone", from_alone, "", 0.01),
        at_most("rows that branch beside the CPU's in float32", from_exact, "", 0.02),
        at_most("logits with a cache beside reading anew", apart.item(), "", 0.02),
    ]


def time_asking(bench: Bench) -> list[Row]:
    """Questions of HellaSwag's shape at `small`'s size: rows that branch, and padded rectangles."""
    config = bench.preset("small").model
    count, context, ending = (4, 12, 6) if bench.rehearse else (128, 80, 28)
    model = Transformer(config).to(bench.device).eval()
    questions = draw_questions(config.vocab_size, count, context, ending)
    branched = on(bench.device, branch(questions, context))
    rows = questions.flatten(0, 1).to(bench.device)

    @torch.no_grad()
    def branching() -> None:
        with bench.runtime.autocast():
            model.score_branches(*branched)

    @torch.no_grad()
    def ordinary() -> None:
        for part in rows.split(64):
            with bench.runtime.autocast():
                logits = model(part[:, :-1]).log_softmax(dim=-1)
            logits.gather(2, part[:, 1:, None])[:, -ending:].sum(dim=1)

    ours, theirs = bench.seconds(branching, 3), bench.seconds(ordinary, 3)
    return [
        Row("asking, rows that branch", count / ours, "questions/s"),
        Row("asking, padded rows and all logits", count / theirs, "questions/s"),
        at_least("asking, how many times as fast", theirs / ours, "", 5.0),
    ]


def time_writing(bench: Bench) -> list[Row]:
    """Greedy writing at `small`'s size, weights in the type of the products: one prompt and 32."""
    config = bench.preset("small").model
    length, steps = (8, 4) if bench.rehearse else (1_024, 32)
    model = Transformer(config).to(bench.device, bench.runtime.dtype).eval()
    rates, rows = {}, []
    for prompts in (1, 32):
        text = draw_tokens(config, prompts, seed=5)[0][:, :length].to(bench.device)

        @torch.inference_mode()
        def write(count: int, text: Tensor = text) -> None:
            cache = model.new_cache(len(text), length + steps)
            token = model(text, cache=cache, last_only=True)[:, -1].argmax(dim=-1, keepdim=True)
            for _ in range(count):
                token = model(token, cache=cache, last_only=True)[:, -1].argmax(-1, keepdim=True)

        first = bench.seconds(lambda write=write: write(0), 3)
        whole = bench.seconds(lambda write=write: write(steps), 3)
        rates[prompts] = prompts * steps / max(whole - first, 1e-9)
        rows += [
            Row(f"writing, {prompts} prompts of {length:,}: first token", first, "s"),
            Row(f"writing, {prompts} prompts of {length:,}", rates[prompts], "tokens/s"),
        ]
    return [*rows, at_least("writing, 32 prompts beside one", rates[32] / rates[1], "", 8.0)]
