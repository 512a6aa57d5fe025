"""Is it right? A GPU in bfloat16, compiled, against references that are slower and surer.

Differences are relative: of vectors, the norm of the difference over the norm of the reference.
One rounding to bfloat16 is up to 0.4 %, and a gradient has been through a hundred of them.
"""

import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from gpu_bench import Bench, LossFunction, Row, at_most, draw_documents, draw_tokens, random_model
from torch import Tensor

from strata.config import TrainingConfig
from strata.model import Transformer, masks
from strata.model.float8 import use_float8
from strata.training.checkpoint import Checkpoints
from strata.training.device import Runtime, apply_runtime, choose_runtime, synchronize
from strata.training.distributed import Processes
from strata.training.optimizer import build_optimizer
from strata.training.state import put_tensors, run_tensors


def gradient(
    model: Transformer, loss_function: LossFunction, runtime: Runtime, *batch: Tensor
) -> tuple[float, Tensor]:
    """The loss, and all gradients in one vector, float64 on the CPU."""
    model.zero_grad(set_to_none=True)
    with runtime.autocast():
        value = loss_function(*(part.to(runtime.device) for part in batch))
    value.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return value.item(), torch.cat(gradients).cpu().double()


def distance(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).norm() / reference.norm()).item()


def check_gradients(bench: Bench) -> list[Row]:
    """Loss and gradients here against the CPU's in float32, and compiled against eager."""
    config = bench.checked()
    batch = draw_tokens(config, 8, seed=0)
    model = random_model(config)
    exact_loss, exact = gradient(model, model.loss, reference_runtime(), *batch)
    apply_runtime(bench.runtime)
    model = model.to(bench.device)
    eager_loss, eager = gradient(model, model.loss, bench.runtime, *batch)
    compiled_loss, compiled = gradient(model, bench.compile(model.loss), bench.runtime, *batch)
    return [
        at_most("loss beside the CPU's in float32", abs(eager_loss / exact_loss - 1), "", 0.005),
        at_most("gradients beside the CPU's in float32", distance(eager, exact), "", 0.05),
        at_most("compiled loss beside the eager", abs(compiled_loss / eager_loss - 1), "", 0.005),
        at_most("compiled gradients beside the eager", distance(compiled, eager), "", 0.05),
    ]


def check_masks(bench: Bench) -> list[Row]:
    """FlexAttention against a boolean matrix, with windows and documents.

    Compared are the gradients, but on a CPU, where it has none, the states that the head reads.
    """
    config = bench.checked(window_length=100, context_length=masks.FLEX_BLOCK)
    tokens, targets = draw_tokens(config, 4, seed=1)
    documents = draw_documents(tokens)
    model = random_model(config).to(bench.device).requires_grad_(bench.on_gpu)
    found = {}
    for kernel in ("sdpa", "flex"):
        torch._dynamo.reset()
        with mock.patch.object(masks, "masked_kernel", lambda device, kernel=kernel: kernel):
            if bench.on_gpu:
                batch = tokens, targets, documents
                compiled = bench.compile(model.loss)
                found[kernel] = gradient(model, compiled, bench.runtime, *batch)[1]
            else:
                with bench.runtime.autocast():
                    states = bench.compile(model.hidden)(tokens, documents=documents)
                found[kernel] = states.double()
    what = "gradients" if bench.on_gpu else "states"
    apart = distance(found["flex"], found["sdpa"])
    return [at_most(f"FlexAttention's {what} beside SDPA's", apart, "", 0.05)]


def check_float8(bench: Bench) -> list[Row]:
    """Gradients with float8 in the blocks against bfloat16."""
    config = bench.checked()
    batch = draw_tokens(config, 8, seed=2)
    model = random_model(config).to(bench.device)
    _, usual = gradient(model, model.loss, bench.runtime, *batch)
    use_float8(model)
    _, eight = gradient(model, model.loss, bench.runtime, *batch)
    _, compiled = gradient(model, bench.compile(model.loss), bench.runtime, *batch)
    return [
        at_most("float8 gradients beside bfloat16's", distance(eight, usual), "", 0.2),
        at_most("compiled float8 gradients beside the eager", distance(compiled, eight), "", 0.1),
    ]


def check_curve(bench: Bench) -> list[Row]:
    """Thirty updates here, compiled, against the same on the CPU in float32."""
    config = bench.checked()
    steps = 6 if bench.rehearse else 30
    curves = []
    for runtime, compiled in ((reference_runtime(), False), (bench.runtime, True)):
        apply_runtime(runtime)
        torch.manual_seed(0)
        model = Transformer(config).to(runtime.device)
        recipe = bench.preset("small").optimizer
        optimizer = build_optimizer(model, recipe, compiled and runtime.compile, runtime.dtype)
        loss_function = bench.compile(model.loss) if compiled else model.loss
        curve = []
        for step in range(steps):
            batch = draw_tokens(config, 4, seed=step)
            value, _ = gradient(model, loss_function, runtime, *batch)
            optimizer.clip(1.0)
            optimizer.step()
            curve.append(value)
        curves.append(curve)
    exact, ours = curves
    apart = max(abs(a / b - 1) for a, b in zip(ours, exact, strict=True))
    return [
        at_most(f"loss curve of {steps} updates beside the CPU's, farthest", apart, "", 0.01),
        Row("loss at its start, on the CPU", exact[0], "nats"),
        Row("loss at its end, on the CPU", exact[-1], "nats"),
    ]


def check_checkpoint(bench: Bench) -> list[Row]:
    """A state that is saved while it goes on changing, and put back where it was."""
    model = random_model(bench.checked() if bench.rehearse else bench.preset("small").model)
    model = model.to(bench.device).requires_grad_()
    optimizer = build_optimizer(model, bench.preset("small").optimizer, dtype=bench.runtime.dtype)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    tensors = run_tensors(model, optimizer)
    there = {name: tensor.clone() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), Processes())
        held = []
        for step in (1, 2):  # the first one gets its memory on the host, too
            synchronize(bench.device)
            started = time.perf_counter()
            checkpoints.save(step, tensors, {})
            held.append(time.perf_counter() - started)
            for tensor in tensors.values():
                tensor.detach().add_(1.0)  # as training would, before it is written
            path = checkpoints.wait()
            assert path is not None
            put_tensors(path, model, optimizer, [], Processes())
            tensors = run_tensors(model, optimizer)
    wrong = sum(not torch.equal(tensor, there[name]) for name, tensor in tensors.items())
    size = sum(tensor.nbytes for tensor in tensors.values())
    return [
        at_most("tensors that came back otherwise", wrong, "", 0),
        Row("state", size / 1e6, "MB"),
        Row("training held by the first save", held[0], "s"),
        at_most("training held by the next, of a minute", 100 * held[1] / 60, "%", 2),
    ]


def reference_runtime() -> Runtime:
    """The CPU in float32."""
    runtime = choose_runtime(TrainingConfig(device="cpu", precision="float32"))
    apply_runtime(runtime)
    return runtime
