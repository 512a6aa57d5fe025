"""`tokenizer.json`: written for that library, read as that library reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import loaded_or_refused, mutated_bytes, mutated_json
from test_tokenizer import NASTY, PATTERNS, TEXTS, sources, trained
from tokenizers import decoders, models, pre_tokenizers, trainers

from strata.tokenizer import Tokenizer
from strata.tokenizer.huggingface import OLDER_CL100K, SPELLINGS
from strata.tokenizer.scanner import RULES


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokenizers_reads_its_format_and_gives_the_same_ids(pattern: str, tmp_path: Path) -> None:
    tokenizer = trained(pattern)
    tokenizer.to_huggingface(tmp_path / "tokenizer.json")
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert exported.get_vocab_size() == tokenizer.vocab_size
    for text in sources(400_000):
        ids = exported.encode(text).ids
        assert ids == tokenizer.encode(text, "all")
        assert exported.decode(ids, skip_special_tokens=False) == text
    exported.encode_special_tokens = True
    assert exported.encode("a<|document|>").ids == tokenizer.encode("a<|document|>")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_reading_inverts_writing(pattern: str, tmp_path: Path) -> None:
    tokenizer, path = trained(pattern), tmp_path / "tokenizer.json"
    tokenizer.to_huggingface(path)
    assert Tokenizer.from_huggingface(path).identity == tokenizer.identity


def test_special_tokens_keep_ids_that_do_not_follow_the_others_at_once(tmp_path: Path) -> None:
    special_tokens = {"<|endoftext|>": 5_001, "returned!": 5_000, "<|x|>": 5_020}
    tokenizer = Tokenizer.from_ranks(trained("cl100k").ranks, "cl100k", special_tokens)
    tokenizer.to_huggingface(tmp_path / "tokenizer.json")
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "a<|endoftext|><|x|>returned!  \n  "
    assert exported.encode(text).ids == tokenizer.encode(text, "all")
    exported.encode_special_tokens = True
    assert exported.encode(text).ids == tokenizer.encode(text)
    back = Tokenizer.from_huggingface(tmp_path / "tokenizer.json")
    assert back.identity == tokenizer.identity


def test_a_word_of_text_is_never_a_special_token_in_the_exported_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_ranks(trained("gpt2").ranks, "gpt2", {"zyx": 5_000})
    tokenizer.to_huggingface(tmp_path / "tokenizer.json")
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    exported.encode_special_tokens = True
    assert exported.encode("zyx").ids == tokenizer.encode("zyx") != [5_000]


def test_a_special_token_named_like_another_token_is_not_exported(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer.from_ranks(ranks, "gpt2", {"a": 256})
    with pytest.raises(ValueError, match="'a' has the name of another token"):
        tokenizer.to_huggingface(tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())


# --- files of others ------------------------------------------------------------------------------


def test_a_vocabulary_trained_by_the_library_is_read_with_its_ids(tmp_path: Path) -> None:
    # Special tokens first, bytes in the order of their characters: as others number them.
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.train_from_iterator(
        sources(200_000),
        trainers.BpeTrainer(
            vocab_size=1_000,
            special_tokens=["<|endoftext|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_huggingface(tmp_path / "tokenizer.json")
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|pad|>": 1}
    assert tokenizer.document_separator == 0
    for text in [*sources(200_000), "a<|pad|>b"]:
        assert tokenizer.encode(text, "all") == theirs.encode(text).ids


def content_of(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """What `tokenizer` is as a tokenizer.json, to be changed into what others write."""
    tokenizer.to_huggingface(path)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


ALL_SPELLINGS = [*SPELLINGS.items(), *((regex, "cl100k") for regex in OLDER_CL100K)]


@pytest.mark.parametrize(("regex", "pattern"), ALL_SPELLINGS)
@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_every_known_spelling_of_a_pattern_gives_the_ids_of_the_library(
    regex: str, pattern: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    key = (regex, pattern)
    if key not in READ:
        own = trained(pattern)
        path = tmp_path_factory.mktemp("spelling") / "tokenizer.json"
        content = content_of(own, path)
        split = content["pre_tokenizer"]["pretokenizers"][0]
        split |= {"pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}
        content["model"]["merges"] = [pair.split(" ") for pair in content["model"]["merges"]]
        content["model"]["ignore_merges"] = False
        path.write_text(json.dumps(content), encoding="utf-8")
        READ[key] = Tokenizer.from_huggingface(path), tokenizers.Tokenizer.from_file(str(path))
        assert READ[key][0].identity == own.identity
    tokenizer, theirs = READ[key]
    for variant in (text, text + "\n ", text + " \r\n\t\u00a0"):
        assert tokenizer.encode(variant, "all") == theirs.encode(variant).ids


def test_a_pattern_of_ones_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "mine", RULES["strata"]._replace(digits=4))
    tokenizer = Tokenizer.train(["some words"], 264, "mine")
    with pytest.raises(ValueError, match="'mine' has no regular expression"):
        tokenizer.to_huggingface(tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


READ: dict[tuple[str, str], tuple[Tokenizer, tokenizers.Tokenizer]] = {}


def test_an_older_cl100k_is_refused_where_it_would_give_other_ids(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"\n ": 256}
    path = tmp_path / "tokenizer.json"
    content = content_of(Tokenizer.from_ranks(ranks, "cl100k"), path)
    assert tokenizers.Tokenizer.from_file(str(path)).encode("\n ").ids == [256]
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = OLDER_CL100K[0]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert tokenizers.Tokenizer.from_file(str(path)).encode("\n ").ids == [10, 32]
    with pytest.raises(ValueError, match=r"older form of cl100k.* b'\\n '"):
        Tokenizer.from_huggingface(path)


def test_several_merges_for_one_token_are_one_where_only_one_can_happen(tmp_path: Path) -> None:
    # as in files made from tiktoken's ranks, which list all pairs whose union is a token
    path = tmp_path / "tokenizer.json"
    own = trained("gpt2").truncate(1_000)
    content = content_of(own, path)
    vocabulary = content["model"]["vocab"]
    content["model"]["merges"] = [
        [name[:cut], name[cut:]]
        for name in vocabulary
        for cut in range(1, len(name))
        if name[:cut] in vocabulary and name[cut:] in vocabulary
    ]
    assert len(content["model"]["merges"]) > len(own.merges)
    path.write_text(json.dumps(content), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    tokenizer = Tokenizer.from_huggingface(path)
    for text in [*NASTY, *sources(300_000)]:
        assert tokenizer.encode(text, "all") == theirs.encode(text).ids


SMALL = trained("gpt2").truncate(300)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, "its normalizer is {'type': 'NFC'}"),
        ("truncation", {"max_length": 3}, "its truncation is"),
        ("padding", {"length": 3}, "its padding is"),
        ("model", None, "'model' to be an object, found nothing"),
        ("model type", "WordPiece", "its model is 'WordPiece', and only BPE"),
        ("model dropout", 0.1, "its dropout is 0.1"),
        ("model unk_token", "<unk>", "its unk_token is '<unk>'"),
        ("model continuing_subword_prefix", "##", "its continuing_subword_prefix is '##'"),
        ("model end_of_word_suffix", "</w>", "its end_of_word_suffix is '</w>'"),
        ("model byte_fallback", True, "its byte_fallback is True"),
        ("model vocab a", 1.0, "the id of 'a' to be a number, found 1.0"),
        ("model vocab a", True, "the id of 'a' to be a number, found True"),
        ("model vocab a", 98, "two tokens have the id 98"),
        ("model vocab \u2581", 400, "stands for no byte"),
        ("model vocab zzz", 400, "b'zzz', is not a merge of two earlier"),
        ("model merges", [], "it has no merge of"),
        ("model merges 0", "a", "expected a merge of two tokens, found 'a'"),
        ("model merges 0", ["z", "z"], "'zz' is no token"),
        ("model merges 0", ["a", 1], "expected a merge of two tokens"),
        ("pre_tokenizer", None, "'pre_tokenizer' to be an object, found nothing"),
        ("pre_tokenizer", {"type": "Whitespace"}, 'its pre_tokenizer is {"type": "Whitespace"}'),
        ("pre_tokenizer pretokenizers 0 pattern Regex", r"\w+", "known spellings of gpt2, cl100k"),
        ("pre_tokenizer pretokenizers 0 behavior", "Removed", "its pre_tokenizer is"),
        ("pre_tokenizer pretokenizers 1 add_prefix_space", True, "add_prefix_space false"),
        ("pre_tokenizer pretokenizers 1 use_regex", True, "its pre_tokenizer is"),
        ("added_tokens 0 lstrip", True, "'<|document|>' has lstrip"),
        ("added_tokens 0 id", 5, "has the id 5, where `tokenizers` takes 292"),
        ("added_tokens 1 id", 294, "has the id 294, where `tokenizers` takes 293"),
        ("added_tokens 0 content", "a", "'a' has the id 292, where `tokenizers` takes"),
        ("added_tokens 0 content", "<|reserved_1|>", "'<|reserved_1|>' twice"),
    ],
)
def test_what_would_give_other_ids_is_refused_by_name(
    place: str, value: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    content = content_of(SMALL, path)
    holder: Any = content
    *way, last = (int(key) if key.isdigit() else key for key in place.split())
    for key in way:
        holder = holder[key]
    holder[last] = value
    if place.startswith("model vocab"):  # which the ids of added tokens depend on
        content["added_tokens"] = []
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is no tokenizer\.json that Strata can read") as caught:
        Tokenizer.from_huggingface(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_merges_in_another_order_than_the_ids_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    content = content_of(SMALL, path)
    content["model"]["merges"].reverse()
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="expected merges in the order of the ids"):
        Tokenizer.from_huggingface(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_a_file_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "tokenizer.json"
    SMALL.to_huggingface(path)
    whole = path.read_bytes()
    path.write_bytes(data.draw(st.one_of(mutated_bytes(whole), mutated_json(whole))))
    tokenizer = loaded_or_refused(
        lambda: Tokenizer.from_huggingface(path), "tokenizer.json is no tokenizer.json"
    )
    assert tokenizer is None or tokenizer.decode(tokenizer.encode("some text")) == "some text"
