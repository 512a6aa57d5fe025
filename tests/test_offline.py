"""The workbook needs no network once it is installed: its parts run with every socket but
loopback blocked, in this process and in the kernels that it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

# Loaded by every Python that is started with the guard's folder on its path, kernels included.
# Each attempt is written down too, since a library may swallow the error.
GUARD = """
import os
import socket

LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")
_connect, _connect_ex, _sendto = (
    socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
)
_getaddrinfo = socket.getaddrinfo


def refuse(what):
    with open(os.environ["STRATA_TEST_ATTEMPTS"], "a") as log:
        log.write(f"{what}\\n")
    raise OSError(f"the network is blocked in this test: {what}")


def check(sock, address):
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        if not str(address[0]).startswith(LOOPBACK):
            refuse(address)


def connect(self, address):
    check(self, address)
    return _connect(self, address)


def connect_ex(self, address):
    check(self, address)
    return _connect_ex(self, address)


def sendto(self, data, *rest):
    check(self, rest[-1])
    return _sendto(self, data, *rest)


def getaddrinfo(host, *rest, **options):
    if host and not str(host).startswith(LOOPBACK) and host != socket.gethostname():
        refuse(host)
    return _getaddrinfo(host, *rest, **options)


socket.socket.connect = connect
socket.socket.connect_ex = connect_ex
socket.socket.sendto = sendto
socket.getaddrinfo = getaddrinfo
"""

CELLS = [
    # a corpus of what is installed, but not all of it
    """
import json
from pathlib import Path
import sitecustomize
from strata.data import installed
assert sitecustomize.refuse  # the guard is in the kernel too
installed.source_folders = lambda: [("json", Path(json.__file__).parent)]
""",
    """
from strata.workbook import begin_chapter
chapter = begin_chapter(preset, run_dir, corpus, OVERRIDES, chapter="offline")
config, run = chapter.config, chapter.run_dir
""",
    """
from strata import Corpus, Tokenizer, Trainer, evaluate, generate
documents = Corpus.open(config.data.corpus, validation_fraction=0.3)
tokenizer = Tokenizer.train(documents.documents("train"), vocab_size=400)
assert tokenizer.decode(tokenizer.encode("def f(): pass")) == "def f(): pass"
""",
    """
from strata.training import read_metrics
trainer = Trainer(config, run, progress=False).fit()
assert read_metrics(run)[-1]["step"] == config.training.max_steps
""",
    """
held_out = documents.documents("validation")
results = evaluate(trainer.model, trainer.tokenizer, ["cloze"], limit=3, documents=held_out)
generate(trainer.model, trainer.tokenizer, "import ", max_new_tokens=4)
""",
    """
from strata.ablations import Suite, compare, final_losses, run_suite
from strata.ablations.ingredients import GPT3, STRATA
suite = Suite("offline", config, (STRATA, GPT3), (0, 1))
runs = run_suite(suite, run / "ablations", progress=False, workers=1)
table = compare(final_losses(runs, ["strata", "gpt3"]), "strata")
""",
    """
import matplotlib.pyplot as plt
from strata import paper
figure, axes = plt.subplots()
axes.plot([line["loss"] for line in read_metrics(run)])
paper.save_figure(figure, "loss", "The loss falls.")
paper.record("cloze", results["cloze"].score)
paper.record_table("ablation", ["variant", "loss"], [[c.variant, c.mean.estimate] for c in table])
""",
]


@pytest.fixture
def blocked(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python has no network; attempts are listed in tmp_path/attempts."""
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    return os.environ | {
        "PYTHONPATH": str(guard),
        "STRATA_TEST_ATTEMPTS": str(tmp_path / "attempts"),
        "OMP_NUM_THREADS": "1",
    }


def python(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_guard_blocks_the_network_and_lets_loopback_through(
    blocked: dict[str, str], tmp_path: Path
) -> None:
    program = (
        "import socket, urllib.request\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "for call in (lambda: socket.create_connection(('192.0.2.1', 80), 1),\n"
        "             lambda: urllib.request.urlopen('http://example.invalid', timeout=1)):\n"
        "    try: call()\n"
        "    except OSError as error: assert 'blocked' in str(error), error\n"
        "    else: raise SystemExit('not blocked')\n"
    )
    finished = python(program, blocked)
    assert finished.returncode == 0, finished.stderr
    assert "example.invalid" in (tmp_path / "attempts").read_text()


def test_the_parts_of_the_workbook_run_without_a_network(
    blocked: dict[str, str], tmp_path: Path
) -> None:
    overrides = {
        "data.tokenizer_vocab_size": 400, "data.validation_fraction": 0.3,
        "model.vocab_size": 320, "model.n_layers": 1, "model.n_heads": 2, "model.width": 16,
        "model.context_length": 32, "training.max_steps": 2, "training.warmup_steps": 1,
        "training.batch_size": 2, "training.validate_every": 1,
        "training.validation_sequences": 2, "training.threads": 1,
    }  # fmt: skip
    notebook = nbformat.v4.new_notebook()
    parameters = 'preset = "nano"\ncorpus = "installed"\nrun_dir = ""'
    notebook.cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_code_cell(cell.replace("OVERRIDES", repr(overrides))) for cell in CELLS),
    ]
    chapters, run = tmp_path / "chapters", tmp_path / "run"
    chapters.mkdir()
    nbformat.write(notebook, chapters / "01_all.ipynb")
    program = (
        "from strata.workbook import run_workbook\n"
        f"run_workbook('nano', 'installed', {str(run)!r}, notebooks={str(chapters)!r})\n"
    )
    finished = python(program, blocked)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()
    assert set(json.loads((run / "values.json").read_text())["values"]) == {"cloze"}
    assert (run / "figures" / "loss.pdf").is_file()
