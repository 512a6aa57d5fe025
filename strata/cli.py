"""The command line: from arguments to a call of `strata/commands/`, from an error to one line.

tyro makes the parser from the signatures of the commands and the classes of the configuration.
Parsing comes first and the call afterwards, so that what tyro says of bad arguments, in a frame of
several lines, can be told from what a command prints, and becomes one line too. What fails is one
line on stderr and a status that is not zero; `--debug` shows the traceback instead.
"""

import contextlib
import functools
import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tyro.conf import DisallowNone, PositionalMetavarFromFieldName
from tyro.extras import SubcommandApp

from strata.commands import experiments, machines, runs, text, transfers, writing
from strata.config import Config, DataConfig

Call = Callable[[], None]

_SINGLE: tuple[Callable[..., None], ...] = (
    runs.workbook,
    runs.paper,
    machines.doctor,
    machines.drill,
    runs.train,
    runs.runs,
    runs.evaluate,
    writing.generate,
    experiments.ablate,
    experiments.tune,
)
_GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "tokenizer": (
        text.tokenizer_train,
        text.tokenizer_encode,
        text.tokenizer_export,
        text.tokenizer_import,
    ),
    "data": (text.data_prepare, text.data_tasks, text.data_overlap),
    "transfer": (
        transfers.transfer_push,
        transfers.transfer_run,
        transfers.transfer_status,
        transfers.transfer_logs,
        transfers.transfer_stop,
        transfers.transfer_pull,
        transfers.transfer_list,
    ),
}
_ABOUT = {
    "tokenizer": "Train, use, export and import tokenizers.",
    "data": "Prepare a corpus, fetch evaluation tasks, and find what one holds of the others.",
    "transfer": "Train on another machine.",
}


class UsageError(ValueError):
    """Arguments that do not parse."""


def deferred(function: Callable[..., None], defaults: Mapping[str, object]) -> Callable[..., Call]:
    """`function`'s signature, with defaults where `defaults` names a parameter; the call put off.

    What it returns is to be called with arguments that tyro made of the signature, and then gives
    the call itself.
    """

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Call:
        return functools.partial(function, *args, **options)

    signature = inspect.signature(function)
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in signature.parameters.items()
        ]
    )
    return command


def _application(arguments: Sequence[str]) -> SubcommandApp:
    """All commands, with the options of `train`, `tune` and `ablate` at their defaults."""
    wants_preset = arguments[:1] in (["train"], ["tune"], ["ablate"])
    config = _starting_configuration(*arguments) if wants_preset else Config()
    defaults = {"config": config, "data": DataConfig()}
    app = SubcommandApp()
    for function in _SINGLE:
        app.command(name=function.__name__)(deferred(function, defaults))
    for name, functions in _GROUPS.items():
        group = SubcommandApp()
        for function in functions:
            short = function.__name__.removeprefix(f"{name}_")
            group.command(name=short)(deferred(function, defaults))
        app.command(group, name=name, help=_ABOUT[name])
    return app


def _starting_configuration(command: str, *arguments: str) -> Config:
    """The configuration whose values are the defaults of the options: a preset's, a suite's base.

    Read off the arguments before they are parsed, since the parser is made from it.

    Raises:
        ValueError: the preset, or the suite, does not come first.
    """
    if arguments and not arguments[0].startswith("-"):
        name = arguments[0]
        if command == "ablate":
            return experiments.base_of(name)
        return Config.load(name) if name.endswith(".toml") else Config.preset(name)
    if command == "ablate":
        if arguments and not {"-h", "--help"} & set(arguments):
            raise ValueError("the suite comes first: strata ablate nano …")
        return Config()
    for known in Config.presets():
        if known in arguments:
            raise ValueError(f"the preset comes first: strata {command} {known} …")
    words: list[str] = []
    for word in arguments:
        words += word.split("=", 1) if word.startswith("--run") else [word]
    words = ["--run-dir" if word == "--run_dir" else word for word in words]
    if "--run-dir" in words[:-1]:
        held = Path(words[words.index("--run-dir") + 1]) / "config.toml"
        return Config.load(held) if held.is_file() else Config()
    return Config()


def parse(arguments: Sequence[str]) -> Call:
    """The call that the arguments ask for.

    Raises:
        SystemExit: with status 0, after printing the help that was asked for.
        UsageError: the arguments do not parse.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            call: Call = _application(arguments).cli(
                prog="strata",
                description="Train a large language model from scratch, and come out with a paper.",
                args=arguments or ["--help"],
                config=(PositionalMetavarFromFieldName, DisallowNone),
            )
            return call
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(one_line(said.getvalue(), _command(arguments))) from None


def _command(arguments: Sequence[str]) -> str:
    """The command that the arguments begin with, as it is written."""
    names = {function.__name__ for function in _SINGLE}
    first, *rest = [*arguments, ""]
    if first in names:
        return f"strata {first}"
    functions = _GROUPS.get(first, ())
    known = {function.__name__.removeprefix(f"{first}_") for function in functions}
    return " ".join(["strata", *([first] if functions else []), *(set(rest[:1]) & known)])


def one_line(frame: str, command: str) -> str:
    """What tyro said of a command in a frame of several lines and sections, as one line."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", frame).splitlines():
        inner = line.strip(" │")
        if inner and not set(inner) - {"─", "-"}:
            sections.append([])
        elif inner and inner[0] not in "╭╰":
            sections[-1].append(inner)
    if "│" not in frame:  # where the terminal knows ASCII alone, the title is a section
        del sections[0]
    message = " ".join(sections[0])
    # tyro's name for the section that was being built; our own messages name the field
    message = re.sub(r"^Error parsing (?!--)\S+: ", "", message)
    for section in sections[1:]:
        if section and section[0].startswith("Perhaps you meant"):
            message += f"; perhaps you meant {section[1]}"
    return f"{message} ({command} --help says more)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 (failed), 2 (bad usage), 128 + a signal.

    With `--debug` among the arguments, an error is raised instead of told.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        parse([argument for argument in given if argument != "--debug"])()
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:  # whoever read our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        status = 1
        if isinstance(error, KeyboardInterrupt):
            number = getattr(error, "signal", signal.SIGINT)  # Interrupted has one
            message, status = message or "stopped", 128 + number
        elif isinstance(error, UsageError):
            status = 2
        elif not isinstance(error, ValueError | OSError | RuntimeError) or not message:
            message = f"{type(error).__name__}: {message} (--debug shows where)"
        print(f"strata: {message}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
