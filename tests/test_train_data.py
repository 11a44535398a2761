"""The tokenizer trainer and the corpus: ids, round trips, categories, errors, and equal batches for equal seeds."""

import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from paceline.errors import CheckpointError, ConfigError, PromptError
from paceline.train.data import Batches, encode_corpus
from paceline.train.documents import Document, balanced_sample, clean, read_documents
from paceline.train.tokenizer import save, tokenizer_sha256, train_tokenizer

CONTROLS = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4,
    "<|tool_response>": 50, "<|channel>": 100, "<|turn>": 105, "<turn|>": 106, "<unused250>": 255,
}  # fmt: skip
SYLLABLES = [a + b + c for a in "bcdfglmnprst" for b in "aeiou" for c in ("", "n", "r", "st")]
ROUND_TRIPS = [
    "plain words",
    " one  two   three    four",
    "trailing   ",
    "def f(x):\n        if x:\n\t\treturn {'a': 1}\n\n\n    # done",
    "na\u00efve \u65e5\u672c\u8a9e \U0001f389 e\u0301 \u0661\u0662",
    "\r\n\t \x00 \u00a0\u2028",
    "<0x41> it's 1,234.5 <notacontrol>",
    "",
]


def sentence(rng: random.Random) -> str:
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(8)]
    return f"The {words[0]} is in the " + " ".join(words[1:]) + " and it is not of this " + words[2] + "."


def code(rng: random.Random) -> str:
    names = ["".join(rng.choices(SYLLABLES, k=2)) for _ in range(4)]
    return "".join(f"def {name}(x):\n    if x == {i}:\n        return x + {i}\n\n\n" for i, name in enumerate(names))


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    save(train_tokenizer((sentence(rng) + "\n" + code(rng) for _ in range(2000)), vocab_size=1100), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng = random.Random(1)
    folder = tmp_path_factory.mktemp("sources")
    marks = {"source": "made up", "license": "Apache-2.0"}
    chats = [
        {"messages": [{"role": "user", "content": f" {sentence(rng)} "}, {"role": "assistant", "content": "Yes."}]}
        for _ in range(600)
    ]
    prose = [{"text": "\n".join(sentence(rng) for _ in range(5))} for _ in range(600)]
    return [
        write_rows(folder / "talk.jsonl", [row | marks for row in chats]),
        write_rows(folder / "my_code.jsonl", [{"text": code(rng)} | marks for _ in range(600)]),
        write_rows(folder / "manuals.jsonl", [row | marks | {"source": "manual"} for row in prose]),
    ]


@pytest.fixture(scope="module")
def corpus(tokenizer_dir: Path, sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    encode_corpus(sources, tokenizer_dir, out)
    return out


def stream(corpus: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.fromfile(corpus / f"{name}.u16", "<u2"), np.fromfile(corpus / f"starts.{name}.u32", "<u4")


def test_ids_follow_gemma(tokenizer: Tokenizer) -> None:
    vocab = tokenizer.get_vocab()
    assert {name: vocab[name] for name in CONTROLS} == CONTROLS
    assert [vocab[f"<0x{byte:02X}>"] for byte in range(256)] == list(range(256, 512))
    assert sorted(vocab.values()) == list(range(1100))


@pytest.mark.parametrize("text", ROUND_TRIPS)
@pytest.mark.parametrize("skip", [True, False])
def test_round_trip(tokenizer: Tokenizer, text: str, skip: bool) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=skip) == text


def test_indentation_is_one_piece(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("        return").tokens == ["\u2581" * 7, "\u2581return"]


def test_vocabulary_that_cannot_be_filled() -> None:
    with pytest.raises(ConfigError, match="give more text or ask for fewer"):
        train_tokenizer(["too little"], vocab_size=2048)
    with pytest.raises(ConfigError, match="between 1024 and 65536"):
        train_tokenizer(["x"], vocab_size=100)


def test_transformers_agrees(tokenizer_dir: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    for text in [*ROUND_TRIPS, "<|turn>user\nhi<turn|>"]:
        ids = tokenizer.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id) == (0, 1, 2)
    assert {"<|turn>", "<turn|>", "<|channel>"} <= set(theirs.all_special_tokens)
    assert theirs.decode([105, 2, 106], skip_special_tokens=True) == ""
    chat = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}]
    shown = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert shown == "<bos><|turn>user\nhi<turn|>\n<|turn>model\nyes<turn|>\n<|turn>model\n"


def test_categories_and_marks(corpus: Path, tokenizer: Tokenizer, tokenizer_dir: Path) -> None:
    summary = json.loads((corpus / "corpus.json").read_text())
    assert summary["tokenizer_sha256"] == tokenizer_sha256(tokenizer_dir)
    assert set(summary["categories"]) == {"chat", "code", "prose"}
    assert summary["sources"]["manual"]["license"] == "Apache-2.0"
    for category, (last, opening) in {"chat": (106, "\n<|turn>"), "code": (1, "def"), "prose": (1, "The")}.items():
        ids, starts = stream(corpus, f"train.{category}")
        counts = summary["categories"][category]["train"]
        assert (len(ids), len(starts)) == (counts["tokens"], counts["documents"])
        assert (ids[starts] == 2).all()
        assert (ids[np.append(starts[1:], len(ids)) - 1] == last).all()
        first = tokenizer.decode(ids[: starts[1]].tolist(), skip_special_tokens=False)
        assert opening in first
    assert 590 <= sum(summary["categories"]["prose"][split]["documents"] for split in ("train", "valid")) <= 600


def test_chat_is_rendered_to_its_last_turn(sources: list[Path]) -> None:
    text = next(read_documents(sources[0])).text
    assert text.startswith("<bos><|turn>user\nThe ")
    assert text.endswith(".<turn|>\n<|turn>model\nYes.<turn|>")


def test_sample_is_balanced_and_unmarked(sources: list[Path]) -> None:
    texts = list(balanced_sample(sources, chars=5000))
    assert 13_000 < sum(map(len, texts)) < 17_000
    assert not any("<" in text for text in texts)


def test_cap_takes_whole_documents(sources: list[Path], tokenizer_dir: Path, corpus: Path, tmp_path: Path) -> None:
    summary = encode_corpus(sources, tokenizer_dir, tmp_path, most_tokens={"code": 2000})
    assert 1500 < summary["categories"]["code"]["train"]["tokens"] <= 2000
    assert stream(tmp_path, "train.chat")[0].tolist() == stream(corpus, "train.chat")[0].tolist()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ('{"text": "x", "source": "s"}', "no key 'license'"),
        ('{"text": 3, "source": "s", "license": "MIT"}', "text is not a string"),
        ('{"messages": [], "source": "s", "license": "MIT"}', "not a list of turns"),
        ('{"messages": ["hi"], "source": "s", "license": "MIT"}', "turn is not a JSON object"),
    ],
)
def test_malformed_row_names_its_line(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine", "source": "s", "license": "MIT"}\n' + line + "\n")
    with pytest.raises(PromptError, match=rf"rows\.jsonl:2 .*{why}"):
        list(read_documents(path))


def test_missing_or_damaged_files(tmp_path: Path, tokenizer_dir: Path) -> None:
    with pytest.raises(PromptError, match="does not exist"):
        encode_corpus([tmp_path / "no.jsonl"], tokenizer_dir, tmp_path)
    (tmp_path / "bad.jsonl.xz").write_bytes(b"not xz")
    with pytest.raises(PromptError, match="damaged"):
        list(read_documents(tmp_path / "bad.jsonl.xz"))
    with pytest.raises(CheckpointError, match="is missing"):
        encode_corpus([], tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="is missing"):
        Batches(tmp_path, 1, 8)


def test_clean_drops_what_it_says() -> None:
    good = "It is a rule of the house that this is not to be used when we are in it. " * 4
    kept = list(
        clean(
            [
                Document("prose", "a", "MIT", good + "\n\n\n\n\nEnd."),
                Document("prose", "b", "MIT", good + "\n\n\n\nEnd."),  # the same, once blank lines are collapsed
                Document("prose", "a", "MIT", "scipy.linalg.lapack.dgesv(a, b)[source]\n" * 20),
                Document("prose", "a", "MIT", good + "<unk>"),
                Document("code", "a", "MIT", "x = [" + "1, " * 400 + "]"),
                Document("chat", "a", "MIT", "<bos>" + "word " * 2000, marks=1),
                *(Document("chat", "tldr", "MIT", f"<bos>{i}", marks=1) for i in range(2100)),
            ]
        )
    )
    assert [document.text for document in kept if document.category != "chat"] == [good + "\n\n\nEnd."]
    assert len(kept) == 2001


def test_batches_repeat_by_seed(corpus: Path) -> None:
    first, again, other = (list(islice(Batches(corpus, 16, 32, seed=seed), 4)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])
    assert first[0].shape == (16, 33)
    assert first[0].dtype == torch.int64
    assert all((rows[:, 0] == 2).all() for rows in first)


def test_windows_are_pieces_of_the_stream(corpus: Path) -> None:
    ids, starts = stream(corpus, "train.chat")
    at_starts = {tuple(ids[s : s + 33].tolist()) for s in starts}
    rows = next(iter(Batches(corpus, 64, 32, weights={"chat": 1.0})))
    assert {tuple(row) for row in rows.tolist()} <= at_starts
    ids, starts = stream(corpus, "train.prose")
    at_starts = {tuple(ids[s + 1 : s + 33].tolist()) for s in starts}
    anywhere = {tuple(ids[s : s + 32].tolist()) for s in range(len(ids))}
    rows = next(iter(Batches(corpus, 300, 32, weights={"prose": 2.0})))[:, 1:]
    assert {tuple(row) for row in rows.tolist()} <= anywhere
    assert 60 < sum(tuple(row) not in at_starts for row in rows.tolist()) < 140


def test_weights(corpus: Path) -> None:
    rows = next(iter(Batches(corpus, 1000, 4, weights={"chat": 3.0, "code": 1.0})))
    assert 700 < int((rows[:, 1] == 105).sum()) < 800
    with pytest.raises(ConfigError, match="positive share"):
        Batches(corpus, 1, 4, weights={"poems": 1.0})
    with pytest.raises(ConfigError, match="shorten the window"):
        Batches(corpus, 1, 10**6)


def test_validation_windows_are_fixed_and_held_out(corpus: Path) -> None:
    a, b = Batches(corpus, 1, 16, seed=0).valid("prose", 3), Batches(corpus, 1, 16, seed=9).valid("prose", 3)
    assert torch.equal(a, b)
    assert a.shape[1] == 17
    ids, starts = stream(corpus, "train.prose")
    trained = {tuple(ids[s : s + 17].tolist()) for s in starts}
    assert not {tuple(row) for row in a.tolist()} & trained
