"""Masked attention against a softmax by hand in float64, and what a token must not see."""

import itertools

import pytest
import torch
from small_models import random_model, random_tokens
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from strata.config import Config, ModelConfig
from strata.evaluation.rows import Request, lay_out, plan_batches
from strata.model import attention, flops_per_token, masks
from strata.model.attention import Attention, rotation
from strata.model.masks import Tree, boolean_mask, make_masks, sees_whole

# the uncompiled kernel is the one a CPU tests without a compiler
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CPU = torch.device("cpu")
TIME = 24


def config_of(**changes: object) -> ModelConfig:
    small = {"vocab_size": 300, "n_layers": 3, "n_heads": 2, "width": 32, "context_length": TIME}
    fields = {f"model.{name}": value for name, value in (small | changes).items()}
    return Config.preset("nano").override(fields).model


WINDOWED = config_of(window_length=5, full_attention_every=2)  # windows in layer 0 alone
NARROW = config_of(window_length=3, full_attention_every=9)  # in all but the last


def two_documents(rows: int, cut: int = 9) -> torch.Tensor:
    """Document numbers: row r is cut in two after `cut + r` tokens."""
    return torch.stack([(torch.arange(TIME) >= cut + row).int() for row in range(rows)])


def seen_by_hand(window: int, documents: torch.Tensor | None, rows: int) -> torch.Tensor:
    """The three rules, one pair of positions at a time: (rows, time, time)."""
    seen = torch.zeros(rows, TIME, TIME, dtype=torch.bool)
    for row, query, key in itertools.product(range(rows), range(TIME), range(TIME)):
        in_window = not window or key > query - window
        together = documents is None or documents[row, query] == documents[row, key]
        seen[row, query, key] = key <= query and in_window and bool(together)
    return seen


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention in place of the boolean matrix, uncompiled so that no compiler is needed."""
    monkeypatch.setattr(masks, "masked_kernel", lambda device: "flex")
    monkeypatch.setattr(masks, "FLEX_BLOCK", TIME)
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_attention)


RULES = [(0, False), (5, False), (0, True), (5, True), (1, False), (TIME, True)]


@pytest.mark.parametrize(("window", "packed"), RULES)
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_attention_equals_a_softmax_by_hand(window, packed, kernel, request):
    if kernel == "flex":
        request.getfixturevalue("flex_on_cpu")
    torch.manual_seed(0)
    config = config_of(window_length=window)
    layer = Attention(config, layer=0).double().requires_grad_(False)
    layer.project.weight.normal_()  # which starts at zero
    x = torch.randn(2, TIME, 32, dtype=torch.float64)
    documents = two_documents(2) if packed else None
    turn = rotation(torch.arange(TIME), config.head_size, config.rotary_base)
    mask = make_masks(config, TIME, 0, CPU, documents).windowed
    if kernel == "flex" and (packed or 0 < window < TIME):
        assert isinstance(mask, BlockMask)

    queries, keys, values = layer.queries_keys_values(x, turn)
    scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys) / 4.0  # the root of a head's 16
    shares = scores.exp() * seen_by_hand(window, documents, 2)[:, None]
    read = torch.einsum("bhqk,bhkd->bhqd", shares / shares.sum(-1, keepdim=True), values)
    expected = layer.project(read.transpose(1, 2).reshape(2, TIME, 32))
    torch.testing.assert_close(layer(x, turn, None, mask), expected)


@pytest.mark.parametrize("config", [config_of(), WINDOWED, NARROW], ids=["whole", "two", "one"])
@pytest.mark.parametrize("packed", [False, True])
def test_flex_attention_gives_the_models_logits_that_sdpa_gives(config, packed, request):
    model, tokens = random_model(config).requires_grad_(False), random_tokens(2, TIME)
    documents = two_documents(2) if packed else None
    plain = model.hidden(tokens, documents=documents)
    request.getfixturevalue("flex_on_cpu")
    torch.testing.assert_close(model.hidden(tokens, documents=documents), plain)


@pytest.mark.parametrize("config", [config_of(), WINDOWED, NARROW], ids=["whole", "two", "one"])
def test_flex_attention_lets_rows_branch_as_sdpa_does(config, request):
    model = random_model(config).requires_grad_(False)
    requests = [Request([1, *(row >> bit & 1 for bit in range(5)), 3], 1) for row in range(5)]
    ((rows, *_),) = plan_batches(requests, 8_192)
    batch = lay_out(requests, [rows, rows[:3]])
    depths, ends = (torch.from_numpy(part)[:, :TIME] for part in (batch.depths, batch.ends))
    tokens, tree = torch.from_numpy(batch.tokens)[:, :TIME], Tree(depths, ends.clamp(max=TIME))
    plain = model.hidden(tokens, tree=tree)
    request.getfixturevalue("flex_on_cpu")
    assert isinstance(make_masks(config, TIME, 0, CPU, tree=tree).whole, BlockMask)
    torch.testing.assert_close(model.hidden(tokens, tree=tree), plain)


def test_flex_attention_takes_autocasts_mixed_types(flex_on_cpu):
    model, tokens = random_model(WINDOWED).requires_grad_(False), random_tokens(2, TIME)
    exact = model.hidden(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.hidden(tokens)
    assert (rough - exact).norm() < 0.03 * exact.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has no backward on CPUs")
def test_flex_attention_gives_the_gradients_that_sdpa_gives(monkeypatch):
    gradients = []
    for kernel in ("sdpa", "flex"):
        monkeypatch.setattr(masks, "masked_kernel", lambda device, kernel=kernel: kernel)
        model = random_model(config_of(window_length=5, context_length=128)).cuda()
        tokens = random_tokens(2, 128).cuda()
        documents = (tokens == 7).int().cumsum(1, dtype=torch.int32)
        model.loss(tokens, tokens, documents).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_what_stands_outside_the_window_does_not_change_a_logit():
    """Two layers of windows of 3 reach 4 back, and the last layer alone sees all."""
    model, tokens = random_model(NARROW), random_tokens(1, TIME)
    changed = tokens.clone()
    changed[0, :6] = (changed[0, :6] + 1) % 300

    def before_the_last(tokens: torch.Tensor) -> torch.Tensor:
        kept = []
        hook = model.blocks[1].register_forward_hook(lambda *given: kept.append(given[-1]))
        with torch.no_grad():
            model(tokens)
        hook.remove()
        return kept[0]

    one, other = before_the_last(tokens), before_the_last(changed)
    assert torch.equal(one[:, 10:], other[:, 10:])
    assert all(not torch.allclose(one[:, at], other[:, at]) for at in range(10))
    with torch.no_grad():
        assert not torch.allclose(model(tokens)[:, -1], model(changed)[:, -1])


def test_what_stands_in_another_document_changes_nothing():
    model, tokens, documents = random_model(WINDOWED), random_tokens(2, TIME), two_documents(2)
    targets = random_tokens(2, TIME).roll(1, 1)
    changed = tokens.clone()
    changed[:, :9] = (changed[:, :9] + 1) % 300  # all of row 0's first document
    with torch.no_grad():
        one, other = (model.hidden(row, documents=documents) for row in (tokens, changed))
    assert torch.equal(one[0, 9:], other[0, 9:])
    assert torch.equal(one[1, 10:], other[1, 10:])
    assert not torch.allclose(one[1, 9], other[1, 9])  # which is of row 1's first document
    nats = [model.score(row, targets, documents)[0] for row in (tokens, changed)]
    assert torch.equal(nats[0][0, 9:], nats[1][0, 9:])
    assert model.loss(tokens, targets, documents).item() == pytest.approx(
        nats[0].mean().item(), rel=1e-5
    )


def test_a_document_reads_as_it_does_alone_but_for_where_it_stands():
    """Rotary positions are relative, so a document packed behind another is unchanged by it."""
    model, tokens, documents = (
        random_model(WINDOWED).double(),
        random_tokens(1, TIME),
        two_documents(1),
    )
    with torch.no_grad():
        packed = model.hidden(tokens, documents=documents)[:, 9:]
        alone = model.hidden(tokens[:, 9:])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [WINDOWED, NARROW], ids=["some", "most"])
@pytest.mark.parametrize("pieces", [[TIME], [7, 1, 1, 15], [1] * TIME])
def test_windows_hold_when_reading_with_the_cache(config, pieces):
    model, tokens = random_model(config).double(), random_tokens(2, TIME)
    cache = model.new_cache(2)
    with torch.no_grad():
        whole = model(tokens)
        parts = [model(part, cache=cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_a_heads_pattern_shows_the_window():
    model, tokens = random_model(WINDOWED), random_tokens(1, TIME)
    narrow, whole = (model.attention_pattern(tokens, layer, head=0) for layer in (0, 1))
    assert torch.equal(narrow > 0, seen_by_hand(5, None, 1)[0])
    assert torch.equal(whole > 0, seen_by_hand(0, None, 1)[0])


def test_flex_attention_is_taken_where_its_blocks_and_heads_fit(monkeypatch):
    monkeypatch.setattr(masks, "masked_kernel", lambda device: "flex")

    def kernel_of(config: ModelConfig, time: int, past: int = 0) -> str:
        mask = make_masks(config, time, past, CPU).windowed
        return "flex" if isinstance(mask, BlockMask) else "sdpa"

    config = config_of(window_length=5, context_length=256)
    assert kernel_of(config, 128) == kernel_of(config, 256) == "flex"
    assert kernel_of(config, 100) == kernel_of(config, 128, past=128) == "sdpa"
    assert kernel_of(config_of(window_length=5, width=16), 128) == "sdpa"  # heads of 8


def test_every_nth_layer_and_the_last_see_everything():
    config = config_of(n_layers=7, window_length=4, full_attention_every=3)
    assert [sees_whole(config, layer) for layer in range(7)] == [
        False, False, True, False, False, True, True,
    ]  # fmt: skip
    assert all(sees_whole(config_of(), layer) for layer in range(3))


def test_windowed_layers_count_what_a_position_reads_and_others_the_whole_context():
    dense, inner = flops_per_token(config_of()), 32
    assert dense - flops_per_token(WINDOWED) == 12 * inner * (TIME - 5)
    assert dense - flops_per_token(NARROW) == 12 * inner * 2 * (TIME - 3)
    assert flops_per_token(config_of(window_length=100)) == dense
    # five tokens, but for the first four positions
    read = boolean_mask(TIME, 0, CPU, window=5).sum(1)
    assert read.tolist() == [1, 2, 3, 4] + [5] * (TIME - 4)


def test_a_mask_is_made_once_for_each_kind_of_layer_and_none_where_none_is_needed(monkeypatch):
    made = []

    def counting(*arguments: object, **named: object) -> torch.Tensor:
        made.append(arguments)
        return boolean_mask(*arguments, **named)

    monkeypatch.setattr(masks, "boolean_mask", counting)
    tokens, documents = random_tokens(2, TIME), two_documents(2)
    random_model(config_of()).hidden(tokens)
    assert len(made) == 0
    random_model(config_of(n_layers=6)).hidden(tokens, documents=documents)
    assert len(made) == 1
    six = config_of(n_layers=6, window_length=4)
    random_model(six).hidden(tokens, documents=documents)
    assert len(made) == 3


def test_documents_of_another_shape_or_with_a_cache_are_refused():
    model, tokens = random_model(config_of()), random_tokens(2, TIME)
    with pytest.raises(ValueError, match=r"documents \(1, 24\): expected .* \(2, 24\)"):
        model.hidden(tokens, documents=two_documents(1))
    with pytest.raises(ValueError, match="no cache"):
        model.hidden(tokens, cache=model.new_cache(2), documents=two_documents(2))


# torch.compile ----------------------------------------------------------------------------------


SHALLOW = config_of(n_layers=2, window_length=5)  # one layer of each kind


@pytest.mark.parametrize(("config", "packed"), [(config_of(n_layers=2), False), (SHALLOW, True)])
def test_the_model_compiles_into_one_graph_and_only_once(config, packed):
    """New documents in every batch are new numbers, never a new graph."""
    torch._dynamo.reset()
    counters.clear()
    model = random_model(config)
    compiled = torch.compile(model.hidden, fullgraph=True, backend="aot_eager")
    for step in range(3):
        tokens = random_tokens(2, TIME).roll(step, 1)
        documents = two_documents(2, cut=4 + 5 * step) if packed else None
        results = []
        for hidden in (model.hidden, compiled):
            model.zero_grad()
            states = hidden(tokens, documents=documents)
            states.cos().sum().backward()  # the sum of squares is fixed by the norm
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            results.append([states.detach(), *gradients])
        torch.testing.assert_close(*results)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_block_masks_are_made_inside_the_compiled_graph(flex_on_cpu):
    torch._dynamo.reset()
    model = random_model(SHALLOW).requires_grad_(False)
    compiled = torch.compile(model.hidden, fullgraph=True, backend="aot_eager")
    for step in range(3):
        tokens = random_tokens(2, TIME).roll(step, 1)
        documents = two_documents(2, cut=4 + 5 * step)
        expected = model.hidden(tokens, documents=documents)
        if step == 1:
            counters.clear()
        torch.testing.assert_close(compiled(tokens, documents=documents), expected)
    assert not counters["stats"]["unique_graphs"]  # after the first step
