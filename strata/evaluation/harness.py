"""lm-evaluation-harness drives a Strata model: its hundreds of tasks, answered by Strata's engine.

    pip install -e '.[lm-eval]'

    import lm_eval
    from strata.evaluation.harness import StrataLM
    lm_eval.simple_evaluate(model=StrataLM.from_run("runs/nano"), tasks=["hellaswag", "triviaqa"])

The harness' own command line knows the models that were registered, and importing this module
registers "strata":

    python -c "import strata.evaluation.harness, lm_eval.__main__ as shell; shell.cli_evaluate()" \\
        run --model strata --model_args run=runs/nano --tasks hellaswag

On the tasks that both have, the scores are those of `strata.evaluate` (tests/test_harness.py):
the prompts are the same, and here the same functions turn them into token ids and score them.
Nothing else in Strata imports this module or `lm_eval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from strata.evaluation.generation import generate
from strata.evaluation.scoring import request_of, score_requests, score_texts

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise ImportError(
        f'strata.evaluation.harness needs lm-eval: pip install -e ".[lm-eval]" ({error})'
    ) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from strata.model import Transformer
    from strata.tokenizer import Tokenizer

# What the harness writes where a task does not say how much, in tokens.
MAX_NEW_TOKENS = 256


class StrataLM(LM):  # type: ignore[misc]
    """A Strata model as the harness knows models.

    A context is the start of a document, as in training: the document separator stands before it.

    Args:
        model: scored on the device it is on.
        tokenizer: the one it was trained with.
        batch_tokens: tokens in one forward pass, padding counted.
        bfloat16: compute in bfloat16 by autocast; else in the type of the weights, or in that of
            the autocast around the call.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int = 8_192,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.bfloat16 = bfloat16
        self._device = model.device  # what the harness' property gives

    @classmethod
    def from_run(cls, run: str | Path, *, device: str = "", **options: Any) -> StrataLM:
        """The finished model of a run folder.

        Args:
            device: such as "cpu" or "cuda:1"; "" = the first GPU, or the CPU where there is none.
            options: `batch_tokens` and `bfloat16`.

        Raises:
            FileNotFoundError: the folder holds no finished run.
        """
        from strata.model import Transformer
        from strata.tokenizer import Tokenizer

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = Transformer.load(run, device).eval()
        return cls(model, Tokenizer.load(Path(run) / "tokenizer.json"), **options)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> StrataLM:
        """As the harness makes a model of `--model_args` and its own options.

        The engine makes batches of as many rows as fit into `batch_tokens`, so `--batch_size` says
        nothing.

        Raises:
            ValueError: no run is named.
        """
        given = {**(additional_config or {}), **arg_dict}
        options = {
            name: value
            for name, value in given.items()
            if value is not None and name not in ("batch_size", "max_batch_size")
        }
        if str(options.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
            del options["device"]  # the harness' default, whatever the machine
        if "run" not in options:
            raise ValueError("model strata: which run? Say --model_args run=runs/nano")
        return cls.from_run(**options)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> StrataLM:
        """The same of `name=value,name=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation): nats of the continuation, and whether it is greedy."""
        context_length = self.model.config.context_length
        rows = []
        for instance in requests:
            context, continuation = instance.args
            rows.append(request_of(context, continuation, self.tokenizer, context_length))
        with self._arithmetic():
            answers = score_requests(
                self.model, rows, batch_tokens=self.batch_tokens, progress=not disable_tqdm
            )
        return [(answer.log_likelihood, answer.greedy) for answer in answers]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Of each text: nats of it as a document of its own, in windows that do not overlap."""
        texts = [instance.args[0] for instance in requests]
        with self._arithmetic():
            return score_texts(
                self.model,
                self.tokenizer,
                texts,
                batch_tokens=self.batch_tokens,
                progress=not disable_tqdm,
            )

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to one of the strings that end it.

        An empty context asks for a document of the model's own.

        Raises:
            ValueError: a task asks for a way of generating that Strata does not have.
        """
        texts = []
        for number, instance in enumerate(
            tqdm(requests, desc="generating", unit="text", disable=disable_tqdm)
        ):
            context, settings = instance.args
            wanted = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
            stop = tuple(text for text in wanted.pop("until") if text)
            length = wanted.pop("max_gen_toks")
            usual = 1.0 if wanted.pop("do_sample") else 0.0
            temperature = wanted.pop("temperature", usual)
            truncation = {name: wanted.pop(name) for name in ("top_k", "top_p") if name in wanted}
            if wanted:
                raise ValueError(f"no way to generate with {', '.join(wanted)}")
            with self._arithmetic():
                text = generate(
                    self.model,
                    self.tokenizer,
                    self._end_of(context, length) or None,
                    max_new_tokens=length,
                    temperature=temperature,
                    stop=stop,
                    seed=number,  # a context that is asked several times gets several answers
                    **truncation,
                )
            texts.append(text)
        return texts

    def _end_of(self, context: str, length: int) -> str:
        """What of a context the model has room for before `length` tokens, or in half of its own.

        A longer one loses its beginning, as before a continuation that is scored.
        """
        whole = self.model.config.context_length - 1  # the separator stands before it
        room = max(whole - length, whole // 2)
        ids = self.tokenizer.encode(context)
        # what is left of a character that was cut is no text
        return self.tokenizer.decode(ids[-room:]).lstrip("\ufffd") if len(ids) > room else context

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.bfloat16:
            return torch.autocast(self.model.device.type, dtype=torch.bfloat16)
        return nullcontext()


register_model("strata")(StrataLM)
