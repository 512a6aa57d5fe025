"""A conversation with the end at home: one question a line, one answer a line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strata.transfer.far.environment import prepare
from strata.transfer.far.exchange import begin, finish, offer, release
from strata.transfer.far.jobs import list_runs, look, read_log, start, stop
from strata.transfer.rules import TransferError

OPERATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (begin, finish, offer, release, prepare, start, look, stop, read_log, list_runs)
}


def serve(folder: str) -> None:
    """Do what home asks, one operation after the other, until it hangs up.

    An answer begins with "strata:", which tells it from what a login script there may print.
    """
    for line in sys.stdin:
        request = json.loads(line)
        try:
            arguments = request["arguments"]
            name = arguments.get("name", "run")
            if name in ("", ".", "..") or "/" in name or not name.isprintable():
                raise TransferError(f"{name!r} is no name of a run: nothing was done")
            reply = OPERATIONS[request["operation"]](Path(folder).absolute(), **arguments)
        except TransferError as error:
            reply = {"error": str(error)}
        except OSError as error:
            named = f"{error.strerror}: {error.filename!r}" if error.filename else str(error)
            reply = {"system_error": named}
        except (ValueError, KeyError) as error:
            reply = {"system_error": f"{type(error).__name__}: {error}"}
        print("\nstrata:" + json.dumps(reply), flush=True)
