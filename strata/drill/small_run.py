"""What a drill trains: a model of 35 thousand parameters on a made-up text, in a few seconds.

Small as it is, the run has all that a long one has to remember: it passes its text more than once,
its batches grow, it validates and samples, its guard watches the loss, and it saves every few
steps, so that a kill costs little but hardly ever nothing.
"""

import random
from pathlib import Path

from strata.config import Config
from strata.storage import write_whole

CHECKPOINT_EVERY = 5  # steps
CHANGES = {
    "data.tokenizer_vocab_size": 400,
    "data.validation_fraction": 0.2,
    "model.vocab_size": 320,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.width": 32,
    "model.context_length": 32,
    "training.batch_size": 8,
    "training.initial_batch_size": 4,
    "training.checkpoint_every": CHECKPOINT_EVERY,
    "training.validate_every": 10,
    "training.validation_sequences": 8,
    "training.sample_every": 40,
    "training.device": "cpu",
    "training.precision": "float32",
    "training.threads": 1,
}


# Enough that a run of so many kills, each of which lets it come past a checkpoint, is not over
# before the last; and more to begin and to end with.
STEPS_A_KILL, STEPS_BESIDE = 9, 30


def write_small_run(folder: Path, kills: int) -> Path:
    """Write the text, and the configuration of runs that are killed so often; return its path."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshr", k=rng.randint(2, 7))) for _ in range(150)]
    for index in range(40):
        sentences = [" ".join(rng.choices(words, k=9)).capitalize() + "." for _ in range(20)]
        write_whole(folder / "corpus" / f"{index:02}.txt", "\n".join(sentences))
    corpus = {"data.corpus": f"files:{(folder / 'corpus').absolute()}/*.txt"}
    steps = STEPS_BESIDE + STEPS_A_KILL * kills
    length = {"training.max_steps": steps, "training.batch_growth_steps": steps // 2}
    config = Config.preset("nano").override(CHANGES | corpus | length)
    config.save(folder / "config.toml")
    return folder / "config.toml"
