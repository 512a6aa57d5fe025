"""The command with which a trained model writes: a prompt, a file of prompts, or a conversation."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction

from strata.commands import Run, load_tokenizer

if TYPE_CHECKING:
    from strata.model import Transformer
    from strata.tokenizer import Tokenizer


def generate(
    run: Run,
    prompt: Positional[str | None] = None,
    file: Path | None = None,
    unprompted: bool = False,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Annotated[tuple[str, ...], UseAppendAction] = (),
    seed: int = 0,
) -> None:
    """Let a trained model continue a text.

    Example: strata generate runs/nano "def mean(values):" --temperature 0.7

    Many: strata generate runs/nano --file prompts.txt --max-new-tokens 64

    Line by line, until the input ends: strata generate runs/nano

    Args:
        prompt: What to continue; without one, every line of the input is continued in turn.
        file: A text file with a prompt in every line; they are continued together.
        unprompted: Let the model write a document of its own.
        max_new_tokens: Write at most so many.
        temperature: Below 1 the likely tokens get likelier; 0 always takes the likeliest.
        top_k: Draw from the likeliest tokens only; 0 = from all.
        top_p: Draw from the fewest tokens that have this probability together.
        min_p: Draw from tokens at least so many times as likely as the likeliest; 0 = from all.
        repetition_penalty: Above 1, tokens that the text holds already become less likely.
        stop: End before this string; may be given several times, and the end of a line as $'\\n'.
        seed: Of the draws; every further line of the input has the next one.
    """
    if (prompt is not None) + (file is not None) + unprompted > 1:
        raise ValueError("continue what? Give a prompt, or --file, or --unprompted, but one alone")
    from strata.evaluation import SamplingOptions, generate_batch, generate_steps

    model, tokenizer = _load_model(run), load_tokenizer(run)
    sampling: SamplingOptions = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }

    def answer(prompt: str | None, seed: int) -> None:
        steps = generate_steps(
            model,
            tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop,
            **sampling,
        )
        print(prompt or "", end="", flush=True)
        written = 0
        for step in steps:
            print(step.text[written:], end="", flush=True)
            written = len(step.text)
        print()

    if file is not None:
        prompts = _read_prompts(file, tokenizer, model.config.context_length)
        texts = generate_batch(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop,
            **sampling,
        )
        for number, (given, text) in enumerate(zip(prompts, texts, strict=True), 1):
            print(f"==== {number} ====\n{given}{text}\n")
    elif prompt is not None or unprompted:
        answer(prompt, seed)
    else:
        _converse(answer, seed)


def _converse(answer: Callable[[str, int], None], seed: int) -> None:
    """Answer the lines of the input, each with a seed of its own, until it ends."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        print("a line to continue, or Ctrl-D to end", file=sys.stderr)
    count = 0
    while line := sys.stdin.readline():
        if line.strip():
            try:
                answer(line.rstrip("\r\n"), seed + count)
                count += 1
            except ValueError as error:  # a person can try another line, a script cannot
                if not at_terminal:
                    raise
                print(f"strata: {error}", file=sys.stderr)


def _read_prompts(file: Path, tokenizer: "Tokenizer", context_length: int) -> list[str]:
    """The lines that are not blank, once each is known to fit.

    Raises:
        ValueError: a line that does not, with its number; a file without a prompt, or not of text.
    """
    from strata.evaluation.generation import prompt_tokens

    prompts = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompts.append(line.removesuffix("\r"))
            try:
                prompt_tokens(prompts[-1], tokenizer, context_length)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    if not prompts:
        raise ValueError(f"{file}: no prompt in it; expected one in every line")
    return prompts


def _load_model(run: Path) -> "Transformer":
    """The model of a run on the best device here, in the type that suits it."""
    from strata.config import TrainingConfig
    from strata.training import choose_runtime, load_trained
    from strata.training.device import apply_runtime

    runtime = choose_runtime(TrainingConfig())
    apply_runtime(runtime)
    model, _, source = load_trained(run, runtime)
    if source.is_dir():
        print(f"{run} is not finished: asking {source}", file=sys.stderr)
    # one token at a time, the time is that of reading the weights
    if runtime.device.type == "cuda":
        return model.to(runtime.dtype)
    return model.for_few_rows()
