"""The optimizers: every rule beside an independent one, restored exactly, whole or in shards."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from two_processes import run_on_two_processes

from strata.config import Config, OptimizerConfig
from strata.model import Transformer
from strata.training import build_optimizer, group_table
from strata.training.checkpoint import Checkpoints
from strata.training.distributed import Processes
from strata.training.rules import (
    adafactor_update,
    adamw_update,
    decay_weights,
    lion_update,
    muon_update,
    normalise_rows,
    orthogonalize,
    sgd_update,
)
from strata.training.schedule import Settings
from strata.training.state import put_tensors, run_tensors

OURS = ("muon", "adamw", "lion", "sgd", "adafactor")
PYTORCHS = ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax")
PYTORCHS += ("NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


def draw_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def matrices_of(model):
    return [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]


# The rules --------------------------------------------------------------------------------------


def follow(oracle, weights, ours, steps=5):
    """Applies both to the same gradients, in float64, and compares what they leave."""
    generator = torch.Generator().manual_seed(1)
    mine = weights.clone()
    for update in range(1, steps + 1):
        gradient = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        oracle.param_groups[0]["params"][0].grad = gradient.clone()
        oracle.step()
        ours(mine, gradient, update)
    torch.testing.assert_close(mine, oracle.param_groups[0]["params"][0].detach())


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, generator=generator, dtype=torch.float64)


def test_adamw_equals_pytorchs(weights):
    config = OptimizerConfig(name="adamw", beta2=0.95)
    parameter = weights.clone().requires_grad_()
    oracle = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)

    def ours(mine, gradient, update):
        adamw_update(mine, gradient, mean, square, update, 0.01, config, 0.1)

    follow(oracle, weights, ours)


def test_sgd_equals_pytorchs_nesterov(weights):
    config = OptimizerConfig(name="sgd")
    parameter = weights.clone().requires_grad_()
    oracle = torch.optim.SGD([parameter], lr=0.01, momentum=0.9, nesterov=True)
    velocity = torch.zeros_like(weights)

    def ours(mine, gradient, update):
        sgd_update(mine, gradient, velocity, 0.01, 0.9, config, 0.0)

    follow(oracle, weights, ours)


@pytest.mark.parametrize("shape", [(5, 7), (11,)])
def test_adafactor_equals_pytorchs_where_the_rate_is_below_its_cap(shape):
    """PyTorch's adds a decay by rate * decay like ours and caps the rate at 1 / sqrt(updates)."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = OptimizerConfig(name="adafactor")
    parameter = weights.clone().requires_grad_()
    oracle = torch.optim.Adafactor([parameter], lr=0.05, weight_decay=0.1, eps=(1e-15, 1e-3))
    squares = [torch.zeros(shape, dtype=torch.float64)]
    if len(shape) == 2:
        squares = [torch.zeros(size, dtype=torch.float64) for size in ((5, 1), (1, 7))]

    def ours(mine, gradient, update):
        # PyTorch takes the size of the weights before they decay, the paper does not say
        adafactor_update(mine, gradient, squares, update, 0.05, config, 0.1)

    follow(oracle, weights, ours)


def test_lion_follows_its_paper(weights):
    """Algorithm 2 of Chen et al. (2023), in its letters."""
    config = OptimizerConfig(name="lion", beta1=0.9, beta2=0.99)
    theta, m = weights.numpy().copy(), np.zeros(weights.shape)
    mine, momentum = weights.clone(), torch.zeros_like(weights)
    for seed in range(4):
        g = np.random.default_rng(seed).normal(size=theta.shape)
        lion_update(mine, torch.from_numpy(g), momentum, 0.003, config, 0.1)
        c = 0.9 * m + 0.1 * g
        theta = theta - 0.003 * (np.sign(c) + 0.1 * theta)
        m = 0.99 * m + 0.01 * g
    np.testing.assert_allclose(mine.numpy(), theta, rtol=1e-12)


def test_cautious_decay_shrinks_only_weights_that_the_update_shrinks():
    weights = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0])
    update = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    decay_weights(weights, update, 0.1, 0.5, cautious=True)
    torch.testing.assert_close(weights, torch.tensor([1.9, 2.0, -2.0, -1.9, 1.9]))
    decay_weights(weights, update, 0.1, 0.5, cautious=False)
    torch.testing.assert_close(weights, 0.95 * torch.tensor([1.9, 2.0, -2.0, -1.9, 1.9]))


@pytest.mark.parametrize("name", OURS)
def test_under_every_rule_cautious_decay_is_the_update_and_the_masked_decay(name, tiny_config):
    """theta <- theta - eta (u + lambda 1[u theta >= 0] theta), u from a step without decay."""
    moved = {}
    for case in ("none", "cautious"):
        torch.manual_seed(0)
        model = Transformer(tiny_config.model)
        start = [parameter.detach().clone() for parameter in model.parameters()]
        config = OptimizerConfig(
            name=name,
            weight_decay=0.0 if case == "none" else 0.3,
            cautious_decay=case == "cautious",
        )
        optimizer = build_optimizer(model, config)
        draw_gradients(model, 1)
        optimizer.step()
        rates = {
            p: g["lr"] * g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
        }
        moved[case] = [p.detach() for p in model.parameters()]
        decays = [rates[p] for p in model.parameters()]
    for old, plain, cautious, shrink in zip(start, *moved.values(), decays, strict=True):
        step = old - plain
        expected = plain - shrink * old * (step * old >= 0)
        torch.testing.assert_close(cautious, expected, rtol=1e-5, atol=1e-6)


def test_normalise_rows_follows_normuon_at_the_norm_that_was_there():
    """Lines 5 to 9 of algorithm 1 of Li et al. (2025), with ||O|| in place of 0.2 sqrt(mn)."""
    v = np.zeros((6, 1))
    squares = [torch.zeros(6, 1, dtype=torch.float64)]
    for seed in range(3):
        update = np.random.default_rng(seed).normal(size=(6, 9)) * np.arange(1, 7)[:, None]
        ours = normalise_rows(torch.from_numpy(update)[None], squares, 0.95)[0].numpy()
        v = 0.95 * v + 0.05 * (update * update).mean(axis=1, keepdims=True)
        even = update / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(
            ours, even * np.linalg.norm(update) / np.linalg.norm(even), rtol=1e-9
        )
    sizes = np.linalg.norm(ours, axis=1)
    assert sizes.max() / sizes.min() < 2  # they were 1 to 6


def test_muon_equals_pytorchs_one_matrix_at_a_time(tiny_config):
    """Updates of batches of equal shapes, tall and wide, against torch.optim.Muon."""
    torch.manual_seed(0)
    config = OptimizerConfig(learning_rate=0.02, newton_schulz_steps=5, normalise_rows=False)
    model = Transformer(tiny_config.model)
    optimizer = build_optimizer(model, config)
    matrices = matrices_of(model)
    before = [matrix.detach().clone() for matrix in matrices]
    copies = [matrix.detach().clone().requires_grad_() for matrix in matrices]
    oracle = torch.optim.Muon(
        copies, lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=True, adjust_lr_fn="original"
    )
    for seed in range(2):
        draw_gradients(model, seed)
        for matrix, twin in zip(matrices, copies, strict=True):
            twin.grad = matrix.grad.clone()
        optimizer.step()
        oracle.step()
    for old, matrix, twin in zip(before, matrices, copies, strict=True):
        ours, theirs = (matrix - old).flatten(), (twin - old).flatten()
        # PyTorch's iterates in bfloat16, ours on the CPU in float32
        assert F.cosine_similarity(ours, theirs, dim=0) > 0.999
        assert (ours.norm() / theirs.norm()).item() == pytest.approx(1, abs=0.02)


def test_muon_decays_matrices_by_rate_times_decay(tiny_config):
    model = Transformer(tiny_config.model)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.02, weight_decay=0.1))
    before = model.blocks[0].feed_forward.expand.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.blocks[0].feed_forward.expand.weight
    torch.testing.assert_close(after, before * (1 - 0.02 * 0.1), rtol=1e-6, atol=0)


def test_matrices_in_one_batch_are_updated_as_one_by_one():
    """A GPU takes all of a shape at once; here the rule is given both."""
    config = OptimizerConfig(normalise_rows=True)
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(2, 3, 8, 24, generator=generator)
    results = []
    for batches in ([[0, 1, 2]], [[0], [1], [2]]):
        parameters = list(start.clone().unbind())
        momenta, squares = list(torch.zeros(3, 8, 24).unbind()), list(torch.zeros(3, 8, 1).unbind())
        for members in batches:
            mine, slopes, means, sizes = (
                [tensors[i] for i in members]
                for tensors in (parameters, gradients, momenta, squares)
            )
            muon_update(mine, slopes, means, sizes, 0.02, 0.95, config, 0.1)
        results.append(torch.stack(parameters))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_directions(shape):
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix, steps=5)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.mT @ result @ right.mT  # diagonal where the singular vectors are the same
    values = inside.diagonal(dim1=-2, dim2=-1)
    large = torch.linalg.svdvals(matrix) > 0.1 * torch.linalg.svdvals(matrix)[:, :1]
    assert ((values[large] > 0.5) & (values[large] < 1.4)).all()
    off_diagonal = inside - torch.diag_embed(values)
    assert off_diagonal.abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(48, 48), (24, 96), (96, 24)])
@pytest.mark.parametrize("condition", ["random", "ill", "rank one"])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_orthogonalize_is_its_polynomial_of_the_singular_values(shape, condition, steps):
    """Against a float64 singular value decomposition, also where rounding would be amplified."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    if condition == "ill":
        values = torch.logspace(0, -8, len(values), dtype=torch.float64)
    elif condition == "rank one":
        values = torch.zeros_like(values).index_fill(0, torch.tensor([0]), 1.0)
    expected = values / values.norm()
    for _ in range(steps):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    matrix = ((left * values) @ right).float()
    result = orthogonalize(matrix[None], steps)[0].double()
    error = torch.linalg.norm(result - (left * expected) @ right)
    # noise of 1e-7 grows 3.4445-fold a step until it is of size one: with one direction in 24, the
    # others are made of it after 12 steps, whoever computes them
    if condition != "rank one" or steps < 12:
        assert error / expected.norm() < 0.02
    assert torch.linalg.matrix_norm(result, 2) < 1.3


# Groups -----------------------------------------------------------------------------------------


def test_every_parameter_is_in_one_group_and_scalars_do_not_decay():
    model = Transformer(Config.preset("nano").override({"model.tie_embeddings": False}).model)
    table = group_table(build_optimizer(model, OptimizerConfig(weight_decay=0.1)))
    assert sum(row[3] for row in table) == sum(p.numel() for p in model.parameters())
    assert {row[0]: row[1] for row in table} == {
        "matrix": "muon",
        "embedding": "adamw",
        "head": "adamw",
        "scalar": "adamw",
    }
    assert {row[0]: row[5] for row in table} == dict.fromkeys(
        ("embedding", "head", "scalar"), 0.0
    ) | {"matrix": 0.1}


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "adafactor", "NAdam"])
def test_any_other_name_is_one_rule_for_all_and_all_but_scalars_decay(name, tiny_config):
    optimizer = build_optimizer(
        Transformer(tiny_config.model), OptimizerConfig(name=name, weight_decay=0.1)
    )
    assert {row[0]: (row[1], row[5]) for row in group_table(optimizer)} == {
        "matrix": (name, 0.1),
        "embedding": (name, 0.1),
        "scalar": (name, 0.0),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "adamv"},
            r"optimizer\.name = 'adamv': expected one of muon, .* NAdam.*'adamw'\?",
        ),
        ({"name": "NAdamm"}, "did you mean 'NAdam'"),
        ({"name": "LBFGS"}, "LBFGS.*it evaluates the loss again"),
        ({"name": "SparseAdam"}, "sparse gradients"),
        ({"name": "Muon"}, "'muon' is Strata's"),
        ({"name": "Optimizer"}, "expected one of"),
        ({"name": "NAdam", "cautious_decay": True}, "cautious_decay has no effect under"),
        ({"name": "sgd", "reference_width": 64}, "reference_width has no effect under"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_can(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


def test_a_class_of_pytorchs_without_weight_decay_is_refused_one(tiny_config):
    with pytest.raises(ValueError, match=r"expected 0, since torch\.optim\.Rprop has none"):
        build_optimizer(
            Transformer(tiny_config.model), OptimizerConfig(name="Rprop", weight_decay=0.1)
        )


def test_the_names_that_are_refused_or_tried_here_are_all_that_pytorch_has():
    classes = {name for name in torch.optim.__all__ if name[0].isupper()} - {"Optimizer"}
    assert classes == {*PYTORCHS, "LBFGS", "Muon", "SparseAdam"}


def test_a_class_of_pytorchs_is_given_the_groups_and_what_it_takes(tiny_config):
    torch.manual_seed(0)
    model = Transformer(tiny_config.model)
    twin = copy.deepcopy(model)
    config = OptimizerConfig(
        name="NAdam", weight_decay=0.1, beta1=0.8, beta2=0.9, epsilon=1e-6, learning_rate=0.003
    )
    optimizer = build_optimizer(model, config)
    rates = {"matrix": 0.003, "embedding": 0.01, "scalar": 0.01}
    names = {group["role"]: group["names"] for group in optimizer.param_groups}
    theirs = dict(twin.named_parameters())
    oracle = torch.optim.NAdam(
        [
            {
                "params": [theirs[name] for name in members],
                "lr": 0.5 * rates[role],
                "weight_decay": 0.0 if role == "scalar" else 0.1,
            }
            for role, members in names.items()
        ],
        betas=(0.8, 0.9),
        eps=1e-6,
    )
    optimizer.set_rate(0.5)
    for seed in range(3):
        draw_gradients(model, seed)
        draw_gradients(twin, seed)
        optimizer.step()
        oracle.step()
    for ours, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, other)


def test_a_schedule_sets_rate_momentum_and_decay(tiny_config):
    optimizer = build_optimizer(Transformer(tiny_config.model), OptimizerConfig(weight_decay=0.2))
    optimizer.set_schedule(Settings(rate_ratio=0.5, momentum=0.9, decay_ratio=0.25))
    matrix, embedding, _ = optimizer.param_groups
    assert (matrix["lr"], matrix["momentum"], matrix["weight_decay"]) == (0.01, 0.9, 0.05)
    assert (embedding["lr"], embedding["weight_decay"]) == (0.005, 0.0)
    assert "momentum" not in embedding
    assert group_table(optimizer)[0][4:] == (0.02, 0.2)  # the peaks


def test_momentum_of_a_step_is_the_one_that_was_set(tiny_config):
    """With no momentum the direction is the gradient's own: a second step forgets the first."""
    moved = []
    for first in (1, 2):
        torch.manual_seed(0)
        model = Transformer(tiny_config.model)
        optimizer = build_optimizer(model, OptimizerConfig(normalise_rows=False))
        for seed in (first, 3):
            before = [matrix.detach().clone() for matrix in matrices_of(model)]
            draw_gradients(model, seed)
            optimizer.set_schedule(Settings(1.0, 0.0, 1.0))
            optimizer.step()
        moved.append([m.detach() - b for m, b in zip(matrices_of(model), before, strict=True)])
    for one, two in zip(*moved, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_reference_width_scales_the_rates_of_updates_that_have_a_size_for_each_number(tiny_config):
    width = tiny_config.model.width
    for name, exponent, ratios in [
        ("muon", 0.5, {"matrix": 1.0, "embedding": 2.0, "scalar": 1.0}),
        ("muon", 1.0, {"matrix": 1.0, "embedding": 4.0, "scalar": 1.0}),
        ("adamw", 1.0, {"matrix": 4.0, "embedding": 4.0, "scalar": 1.0}),
    ]:
        config = OptimizerConfig(name=name)
        scaled = OptimizerConfig(name=name, reference_width=4 * width, width_exponent=exponent)
        model = Transformer(tiny_config.model)
        before, after = (group_table(build_optimizer(model, c)) for c in (config, scaled))
        assert {a[0]: a[4] / b[4] for a, b in zip(after, before, strict=True)} == ratios


# What a step costs and tells --------------------------------------------------------------------


def test_clipping_shrinks_all_gradients_to_the_limit_and_tells_the_norm_before(tiny_config):
    model = Transformer(tiny_config.model)
    optimizer = build_optimizer(model, OptimizerConfig())
    assert optimizer.gradient_norm == 0.0
    draw_gradients(model, 0)
    twin = copy.deepcopy(model)
    draw_gradients(twin, 0)
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 2.0).item()
    optimizer.clip(2.0)
    assert optimizer.gradient_norm == pytest.approx(norm, rel=1e-5)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    for limit in (3.0, 0.0):  # within it, and none
        before = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.clip(limit)
        assert optimizer.gradient_norm == pytest.approx(2.0, rel=1e-5)
        assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", [*OURS, "normuon", "cautious adamw"])
def test_clipping_and_stepping_never_wait_for_a_gpu(name, tiny_config):
    """On tensors that say they are on one and hold no numbers, reading any number back raises."""
    config = OptimizerConfig(
        name={"normuon": "muon"}.get(name, name.removeprefix("cautious ")),
        normalise_rows=name == "normuon",
        cautious_decay="cautious" in name,
        weight_decay=0.1,
    )
    model = Transformer(tiny_config.model)
    with FakeTensorMode():
        for module in model.modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                there = torch.empty(parameter.shape, device="cuda")
                setattr(module, key, torch.nn.Parameter(there))
        optimizer = build_optimizer(model, config)
        for update in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.set_schedule(Settings(1.0, 0.9 + update / 100, 1.0))
            optimizer.clip(1.0)
            optimizer.step(measure=True)
        with pytest.raises(DataDependentOutputException):
            print(optimizer.gradient_norm)
    assert all(parameter.is_cuda for parameter in model.parameters())


@pytest.mark.parametrize("name", ["muon", "adamw", "NAdam"])
def test_measures_tell_each_roles_gradient_norm_and_relative_update(name, tiny_config):
    model = Transformer(tiny_config.model)
    unmeasured = copy.deepcopy(model)
    optimizer = build_optimizer(model, OptimizerConfig(name=name))
    assert optimizer.measures == {}
    draw_gradients(model, 0)
    names = {group["role"]: group["names"] for group in optimizer.param_groups}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = {k: p.grad.clone() for k, p in model.named_parameters()}
    optimizer.clip(0.5)
    optimizer.step(measure=True)
    after = model.state_dict()

    def norm(tensors, role):
        return math.sqrt(sum(tensors[k].double().square().sum().item() for k in names[role]))

    for role, measured in optimizer.measures.items():
        assert measured["gradient_norm"] == pytest.approx(norm(gradients, role), rel=1e-4)
        change = {k: after[k].double() - before[k].double() for k in before}
        ratio = norm(change, role) / norm(after, role)
        assert measured["update_ratio"] == pytest.approx(ratio, rel=1e-3)
    assert optimizer.measures.keys() == names.keys()

    optimizer = build_optimizer(unmeasured, OptimizerConfig(name=name))
    draw_gradients(unmeasured, 0)
    optimizer.clip(0.5)
    optimizer.step()
    assert all(torch.equal(after[k], v) for k, v in unmeasured.state_dict().items())


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_blocks_and_kernels_give_what_the_rule_gives_whole(name):
    """The optimizer's ways through memory beside the rule on the whole tensor."""
    model = Transformer(Config().override({"model.n_layers": 1, "model.width": 96}).model)
    twin = copy.deepcopy(model)
    config = OptimizerConfig(name=name, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    moments = [[torch.zeros_like(p) for _ in range(2)] for p in twin.parameters()]
    rates = {k: g for g in optimizer.param_groups for k in g["names"]}
    assert model.embedding.weight.numel() >= 3 << 17  # several blocks
    for update in range(1, 4):
        draw_gradients(model, update)
        draw_gradients(twin, update)
        optimizer.step()
        for (key, p), (first, second) in zip(twin.named_parameters(), moments, strict=True):
            rate, decay = rates[key]["lr"], rates[key]["weight_decay"]
            with torch.no_grad():
                if name == "adamw":
                    adamw_update(p, p.grad, first, second, update, rate, config, decay)
                elif name == "lion":
                    lion_update(p, p.grad, first, rate, config, decay)
                else:
                    sgd_update(p, p.grad, first, rate, config.momentum, config, decay)
    for ours, whole in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*OURS, "cautious adamw"])
def test_compiled_rules_give_the_same_and_are_not_compiled_again_as_numbers_change(
    name, tiny_config, monkeypatch
):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compiler(f, backend=counter, fullgraph=True)
    )
    config = OptimizerConfig(
        name=name.removeprefix("cautious "), weight_decay=0.1, cautious_decay="cautious" in name
    )
    torch.manual_seed(0)
    model = Transformer(tiny_config.model)
    twin = copy.deepcopy(model)
    compiled, plain = build_optimizer(model, config, compile=True), build_optimizer(twin, config)
    counts = []
    for update in range(1, 6):
        for optimizer, which in ((compiled, model), (plain, twin)):
            draw_gradients(which, update)
            optimizer.set_schedule(Settings(1 / update, 0.9 + update / 100, 0.5**update))
            optimizer.step()
        counts.append(counter.frame_count)
    assert len(set(counts[1:])) == 1
    assert counts[-1] > 0 or name == "adamw"  # whose kernel is fused as it is
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# Restored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OURS, "normuon", *PYTORCHS])
def test_an_optimizer_restored_from_a_checkpoint_goes_on_bit_for_bit(name, tiny_config, tmp_path):
    config = OptimizerConfig(
        name="muon" if name == "normuon" else name, normalise_rows=name == "normuon"
    )

    def train(model, optimizer, updates):
        for update in updates:
            draw_gradients(model, update)
            optimizer.clip(1.0)
            optimizer.step()

    def begin():
        torch.manual_seed(0)
        model = Transformer(tiny_config.model)
        return model, build_optimizer(model, config)

    model, optimizer = begin()
    train(model, optimizer, range(1, 7))
    half_way, half_optimizer = begin()
    train(half_way, half_optimizer, range(1, 4))
    written = Checkpoints(tmp_path, Processes())
    written.save(3, run_tensors(half_way, half_optimizer), {})
    path = written.wait()
    resumed, resumed_optimizer = begin()
    train(resumed, resumed_optimizer, range(1, 2))  # state that has to be replaced
    put_tensors(path, resumed, resumed_optimizer, [], Processes())
    resumed_optimizer.updates = 3
    train(resumed, resumed_optimizer, range(4, 7))
    for whole, restored in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(whole, restored)
        ours, theirs = optimizer.state[whole], resumed_optimizer.state[restored]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


# In shards --------------------------------------------------------------------------------------

SHARDED = """
import copy, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import distribute_tensor
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, "tests")
from strata.config import OptimizerConfig
from strata.training.groups import group_parameters
from strata.training.optimizer import Optimizer

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.even = nn.Parameter(torch.randn(8, 12))
        self.odd = nn.Parameter(torch.randn(7, 12))
        self.tall = nn.Parameter(torch.randn(33, 5))
        self.single = nn.Parameter(torch.randn(1, 6))
        self.embedding = nn.Parameter(torch.randn(9, 12))
        self.gain = nn.Parameter(torch.randn(3))

dist.init_process_group("gloo")
torch.set_num_threads(1)
for name in ("muon", "normuon", "adamw", "cautious adamw", "lion", "sgd", "adafactor", "NAdam"):
    config = OptimizerConfig(
        name={"normuon": "muon"}.get(name, name.removeprefix("cautious ")),
        normalise_rows=name == "normuon", cautious_decay="cautious" in name, weight_decay=0.1,
    )
    torch.manual_seed(0)
    whole = Model()
    sharded = copy.deepcopy(whole)
    fully_shard(sharded)
    optimizers = [Optimizer(group_parameters(m, config), config) for m in (whole, sharded)]
    for step in range(3):
        for one, part in zip(whole.parameters(), sharded.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            part.grad = distribute_tensor(one.grad, part.device_mesh, part.placements)
        for optimizer in optimizers:
            optimizer.clip(1.0)
            optimizer.step(measure=True)
        one, part = optimizers
        assert abs(one.gradient_norm / part.gradient_norm - 1) < 1e-5, name
        for role, measured in one.measures.items():
            for kind, value in measured.items():
                assert abs(part.measures[role][kind] / value - 1) < 1e-3, (name, role, kind)
    for key, one in whole.named_parameters():
        torch.testing.assert_close(
            dict(sharded.named_parameters())[key].full_tensor(), one.detach(),
            rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}, {key}: {text}",
        )
print("equal on", dist.get_rank())
dist.destroy_process_group()
"""


def test_sharded_updates_equal_whole_ones_where_rows_divide_evenly_and_where_not(tmp_path):
    said = run_on_two_processes(
        tmp_path / "sharded.py",
        SHARDED,
    )
    assert said.count("equal on") == 2  # two processes may write into one line
