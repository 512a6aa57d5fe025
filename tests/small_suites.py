"""Suites of tiny runs, and a stand-in that makes the folder of a run without training one."""

import json
import math

from strata.ablations.sweep import run_suite
from strata.ablations.variants import Suite, Variant
from strata.config import Config
from strata.training.folder import code_hash
from strata.training.guard import Diverged

TINY = Config().override(
    {
        "model.vocab_size": 300,
        "model.n_layers": 1,
        "model.n_heads": 1,
        "model.width": 8,
        "model.context_length": 8,
        "training.max_steps": 4,
        "training.batch_size": 2,
        "training.warmup_steps": 1,
        "training.validate_every": 2,
        "training.checkpoint_every": 0,
        "training.threads": 1,
    }
)
GELU = Variant("gelu", {"model.activation": "gelu"}, "GELU.")


class StandIn:
    """In place of the trainer: writes the folder of a finished run and remembers its name."""

    def __init__(self, fails=(), best_rate=0.02, diverges=()):
        self.made, self.fails, self.best_rate = [], set(fails), best_rate
        self.diverges = set(diverges)

    def __call__(self, config, folder, callbacks=()):
        self.made.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder / "config.toml")
        (folder / "provenance.json").write_text(json.dumps({"code": code_hash()}))
        if folder.name in self.fails:
            raise OSError("no space left on device")
        if folder.name in self.diverges:
            raise Diverged("the loss is nan at step 3")
        loss = 2.0 + 0.1 * config.training.seed
        loss += 0.2 * (config.model.activation == "gelu")
        loss += abs(math.log(config.optimizer.learning_rate / self.best_rate))
        per_step = config.training.batch_size * config.model.context_length
        lines = [
            {
                "step": step,
                "loss": 1.0,
                "tokens": step * per_step,
                "timing": {"seconds": 0.5},
                **({"validation_bits_per_byte": loss * 4 / step} if step % 2 == 0 else {}),
            }
            for step in range(1, 5)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        summary = {
            "validation_bits_per_byte": loss,
            "parameters": 1_000,
            "body_parameters": 800,
            "flops_per_token": 10.0,
            "tokens": 4 * per_step,
            "flops": 40.0 * per_step,
            "timing": {"seconds": 2.0, "validation_seconds": 0.5},
        }
        (folder / "summary.json").write_text(json.dumps(summary))


def sweep(suite, folder, stand_in):
    return run_suite(suite, folder, progress=False, workers=1, train=stand_in)


def suite_of(*variants, seeds=(0, 1), **rest):
    return Suite("test", TINY, variants, seeds, **rest)
