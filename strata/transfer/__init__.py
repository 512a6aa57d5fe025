"""Take a run to a training machine and bring it home, over plain ssh.

    push("runs/mine", "me@gpu:strata")     code, run and token shards go there
    run("runs/mine", "me@gpu:strata")      training starts there and outlives the connection
    status("runs/mine", "me@gpu:strata")   what it says now
    pull("runs/mine", "me@gpu:strata")     what it made comes home

`target` says where that is, `connection` talks to it over ssh; `contents` says what a push consists
of, `exchange` is both ways' end at home, `control` the job's. `far/` is the other end, and `rules`
what both keep. ssh is the user's own, with its configuration, agent and host-key checking;
STRATA_SSH_COMMAND names another command line for it, as GIT_SSH_COMMAND does for git.
"""

from strata.transfer.control import Status, run, status
from strata.transfer.exchange import Transferred, pull, push
from strata.transfer.rules import TransferError
from strata.transfer.target import Target

__all__ = ["Status", "Target", "TransferError", "Transferred", "pull", "push", "run", "status"]
