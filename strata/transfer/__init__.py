"""Take a run to a training machine and bring it home, over plain ssh.

    push("runs/mine", "me@gpu:strata")     code, run and token shards go there
    run("runs/mine", "me@gpu:strata")      training starts there and outlives the connection
    watch("runs/mine", "me@gpu:strata")    a live bar; status, logs, stop and list_runs ask once
    pull("runs/mine", "me@gpu:strata")     what it made comes home

`target` says where that is, and `connection` talks to it over ssh. `exchange` is both ways' end at
home: `contents` says what a push consists of, `carrying` moves the files, `receiving` makes a run
of what arrives. `control` and `watching` are the job's end at home. `far/` is the other end, and
`job` trains there; `rules` is what both keep to. `loopback` makes a far machine of this one.

ssh is the user's own, with its configuration, agent and host-key checking; STRATA_SSH_COMMAND
names another command line for it, as GIT_SSH_COMMAND does for git.
"""

from strata.transfer.control import Status, list_runs, logs, run, status, stop
from strata.transfer.exchange import Transferred, pull, push
from strata.transfer.rules import TransferError
from strata.transfer.target import Target
from strata.transfer.watching import watch

__all__ = [
    "Status",
    "Target",
    "TransferError",
    "Transferred",
    "list_runs",
    "logs",
    "pull",
    "push",
    "run",
    "status",
    "stop",
    "watch",
]
