"""What the tests share: a private cache, and a corpus and configuration that train in seconds."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from far_runs import FAR_NAME, make_source

from strata.config import Config
from strata.transfer import contents
from strata.transfer.loopback import Loopback, missing_tools


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Keep the tests out of the user's cache, for themselves and the processes they start."""
    patch = pytest.MonkeyPatch()
    patch.setenv("STRATA_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory, private_cache) -> Config:
    """A model of 30 thousand parameters on 80 made-up documents, eight updates long."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshr", k=rng.randint(2, 7))) for _ in range(150)]
    for index in range(80):
        sentences = [" ".join(rng.choices(words, k=9)).capitalize() + "." for _ in range(20)]
        (folder / f"{index:02}.txt").write_text("\n".join(sentences))
    return Config.preset("nano").override(
        {
            "data.corpus": f"files:{folder}/*.txt",
            "data.tokenizer_vocab_size": 400,
            "data.validation_fraction": 0.2,
            "model.vocab_size": 320,
            "model.n_layers": 2,
            "model.n_heads": 2,
            "model.width": 32,
            "model.context_length": 32,
            "training.max_steps": 8,
            "training.batch_size": 4,
            "training.warmup_steps": 2,
            "training.checkpoint_every": 3,
            "training.validate_every": 4,
            "training.validation_sequences": 8,
            "training.threads": 1,
            # on any CPU alike: "auto" is bfloat16 where the hardware has it
            "training.precision": "float32",
        }
    )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A far machine, which is this one, behind a real sshd."""
    if missing := missing_tools():
        pytest.skip(f"transfers are tested against a real sshd: install {', '.join(missing)}")
    with Loopback(tmp_path_factory.mktemp("machine"), {"OMP_NUM_THREADS": "1"}) as machine:
        yield machine


@pytest.fixture
def far(machine: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A target folder of an awkward name on the far machine."""
    monkeypatch.setenv("STRATA_SSH_COMMAND", f"ssh -F '{machine.ssh_config}'")
    return f"loopback:{tmp_path / FAR_NAME}"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree in the place of Strata's own, and a cache of the test's."""
    root = make_source(tmp_path / "source")
    monkeypatch.setattr(contents, "ROOT", root)
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    return root
