"""The loss head against float64, and where it has to work: autocast, compiled, sharded."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from small_models import RECIPES, STRATA, random_model, random_tokens
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from two_processes import start_server

from strata.model.loss import chunk_length, chunked_cross_entropy, soft_cap
from strata.training.distributed import LossModule


@pytest.mark.parametrize("cap", [0.0, 2.0, 60.0])
@pytest.mark.parametrize("positions", [1, 700])  # 700 take three chunks
def test_the_loss_and_its_gradients_equal_the_plain_ones_in_float64(cap, positions):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 300, (positions,), generator=generator)
    if positions > 1:
        targets[::7] = -100

    def run(function, dtype):
        inputs = [x.clone().to(dtype).requires_grad_() for x in (hidden, weight)]
        loss = function(*inputs)
        (3 * loss).backward()
        return loss.detach().double(), *(x.grad.double() for x in inputs)

    plain = run(lambda h, w: F.cross_entropy(soft_cap(h @ w.T, cap), targets), torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = run(lambda h, w: chunked_cross_entropy(h, w, targets, cap), dtype)
        for mine, reference in zip(ours, plain, strict=True):
            error = (mine - reference).norm() / reference.norm()
            assert error < tolerance


@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_logits_of_any_size_give_a_finite_loss_and_gradient(cap):
    hidden = torch.tensor([[300.0, 0.0], [-300.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    chunked_cross_entropy(hidden, weight, torch.tensor([2, 2]), cap).backward()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_targets_that_are_all_left_out_give_zero():
    hidden, weight = torch.randn(3, 8, requires_grad=True), torch.randn(300, 8)
    loss = chunked_cross_entropy(hidden, weight, torch.full((3,), -100), 15.0)
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that any operation returns in one tensor."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_the_loss_never_holds_all_logits(cap):
    vocab, positions = 8_192, 2_048
    hidden = torch.randn(positions, 8, requires_grad=True)
    weight = torch.randn(vocab, 8, requires_grad=True)
    with LargestTensor() as seen:
        chunked_cross_entropy(hidden, weight, torch.zeros(positions).long(), cap).backward()
    assert seen.numel <= chunk_length(vocab, "cpu") * vocab < positions * vocab
    assert chunk_length(86_400, "cpu") * 86_400 * 4 < 90e6


def test_the_loss_works_under_bfloat16_autocast():
    model, tokens = random_model(STRATA), random_tokens(2, 16)
    exact = model.loss(tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(tokens, tokens)
        rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_micro_batches_of_a_loss_sum_to_the_gradient_of_the_batch():
    tokens = random_tokens(4, 16)
    gradients = []
    for pieces in (1, 2, 4):
        model = random_model(STRATA)
        for piece in tokens.chunk(pieces):
            (model.loss(piece, piece) / pieces).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


@RECIPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_compiles_into_one_graph(config, dtype):
    model, tokens = random_model(config), random_tokens(2, 16)
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    results = []
    for loss_function in (model.loss, compiled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_function(tokens, tokens)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.01}
    torch.testing.assert_close(*results, **tolerance)


def sharded_loss(rank, folder):
    """In one of two processes: the sharded model's loss and gradients, put together again."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = LossModule(random_model(STRATA))
    for block in module.model.blocks:
        fully_shard(block)
    fully_shard(module)
    mine = random_tokens(4, 16)[2 * rank : 2 * rank + 2]
    loss = module(mine, mine)
    loss.backward()
    total = loss.detach() / 2
    dist.all_reduce(total)
    gradients = {name: p.grad.full_tensor() for name, p in module.model.named_parameters()}
    if rank == 0:
        torch.save({"loss": total, "gradients": gradients}, f"{folder}/result.pt")
    dist.destroy_process_group()


def test_the_loss_of_a_sharded_model_equals_the_unsharded_one(tmp_path):
    start_server()
    options = {"nprocs": 2, "start_method": "forkserver"}
    torch.multiprocessing.start_processes(sharded_loss, (str(tmp_path),), **options)
    sharded = torch.load(tmp_path / "result.pt")
    model, tokens = random_model(STRATA), random_tokens(4, 16)
    loss = model.loss(tokens, tokens)
    loss.backward()
    torch.testing.assert_close(sharded["loss"], loss.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(sharded["gradients"][name], parameter.grad, msg=name)
