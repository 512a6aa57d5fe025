"""The decision where and how to compute, on machines that are not this one."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from strata.config import Config, TrainingConfig
from strata.training import device
from strata.training.device import choose_runtime, peak_flops

WIDE = Config.preset("gpt3-xl").model
NARROW = Config.preset("small").model


@pytest.fixture
def gpu(monkeypatch):
    """A function that pretends a GPU of some name and compute capability."""
    choose_runtime.cache_clear()

    def pretend(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        about = SimpleNamespace(total_memory=80e9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: about)
        has = capability >= (8, 0)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)

    yield pretend
    choose_runtime.cache_clear()


def test_a_hopper_gpu_compiles_in_bfloat16_and_says_so(gpu):
    gpu("NVIDIA H200", (9, 0))
    runtime = choose_runtime(TrainingConfig())
    assert runtime.device == torch.device("cuda:0")
    assert runtime.dtype == torch.bfloat16
    assert runtime.compile
    assert not runtime.float8
    about = " | ".join(runtime.reasons)
    for part in (
        "device cuda",
        "bfloat16",
        "flash",
        "FlexAttention",
        "compile on",
        "threads",
        "4.5 billion",
    ):
        assert part in about


def test_auto_takes_float8_for_wide_compiled_models_on_chips_that_have_it(gpu):
    gpu("NVIDIA H200", (9, 0))
    wide = choose_runtime(TrainingConfig(), WIDE)
    assert wide.float8
    assert wide.dtype == torch.bfloat16  # of everything but the blocks' matrices
    assert "float8" in wide.reasons[1]
    assert not choose_runtime(TrainingConfig(), NARROW).float8
    assert not choose_runtime(TrainingConfig(compile="off"), WIDE).float8
    assert not choose_runtime(TrainingConfig(precision="bfloat16"), WIDE).float8
    choose_runtime.cache_clear()
    gpu("NVIDIA A100-SXM4-80GB", (8, 0))
    assert not choose_runtime(TrainingConfig(), WIDE).float8


def test_float8_can_be_asked_for_and_is_refused_where_the_chip_lacks_it(gpu):
    gpu("NVIDIA L40S", (8, 9))
    runtime = choose_runtime(TrainingConfig(precision="float8", compile="off"), NARROW)
    assert runtime.float8
    assert "without torch.compile it is slow" in runtime.reasons[1]
    choose_runtime.cache_clear()
    gpu("NVIDIA A100-SXM4-80GB", (8, 0))
    with pytest.raises(ValueError, match=r"'float8': this GPU, of compute capability 8\.0, lacks"):
        choose_runtime(TrainingConfig(precision="float8"))
    with pytest.raises(ValueError, match=r"'float8': cpu .* capability 8\.9 or later"):
        choose_runtime(TrainingConfig(precision="float8", device="cpu"))


def test_an_old_gpu_uses_float32_and_refuses_bfloat16(gpu):
    gpu("Tesla T4", (7, 5))
    runtime = choose_runtime(TrainingConfig())
    assert runtime.dtype == torch.float32
    assert "TF32" in runtime.reasons[1]
    assert "memory-efficient" in runtime.reasons[2]
    with pytest.raises(ValueError, match="'bfloat16': this GPU lacks"):
        choose_runtime(TrainingConfig(precision="bfloat16"))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_chip_is_known_by_the_name_that_cuda_gives_it(gpu, name, peak):
    gpu(name, (9, 0))
    assert peak_flops(choose_runtime(TrainingConfig())) == peak


def test_a_cpu_has_no_peak_by_data_sheet_and_takes_masks_by_matrix():
    runtime = choose_runtime(TrainingConfig(device="cpu"))
    assert peak_flops(runtime) is None
    assert any("boolean mask" in reason for reason in runtime.reasons)


def test_threads_are_shared_among_the_processes_of_a_machine(monkeypatch):
    choose_runtime.cache_clear()
    monkeypatch.setattr(device, "_on_linux", lambda: False)
    monkeypatch.setattr(device.os, "cpu_count", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_runtime(TrainingConfig(device="cpu")).threads == 4
    assert choose_runtime(TrainingConfig(device="cpu", threads=3)).threads == 3
    choose_runtime.cache_clear()


def test_where_a_product_takes_seconds_one_is_enough_to_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = choose_runtime(TrainingConfig(device="cpu", precision="float32", threads=1))
    for seconds, products in ((3.0, 1), (0.4, 3), (0.1, 5)):
        clock = itertools.count()
        ticks = (turn * seconds for turn in clock)
        monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=ticks.__next__))
        assert device.matmul_flops.__wrapped__(runtime) == pytest.approx(2 * 1_024**3 / seconds)
        assert next(clock) == 2 * products
