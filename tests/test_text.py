"""Text: templates as Transformers renders them, and streaming that never shows what it must take back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from paceline.errors import CheckpointError, ConfigError, PromptError
from paceline.hub import EMBEDDED_PAIR
from paceline.text import Detokenizer, Pieces, StopStrings, Text, stop_token_ids
from paceline.types import ChatMessage

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
CORPUS = ["the cat sat on the mat, and the dog sat on the log.", "не кот и пёс", "hello there\n\nworld", "你好 世界"]
SCRIPTS = [
    *CORPUS,
    " a leading space,  two spaces\n\tand a tab ",
    "日本語のテキスト",
    "नमस्ते दुनिया",
    "مرحبا بالعالم",
    "🦄 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    "龘靐齉 𒀀𒁀 𐎀𐎁",
    "▁literal▁ \ufffd \x00\u200b",
    "<|turn>user<turn|> <0xE4> <bos>",
]
TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}
        {{ raise_exception('tools are not served here') }}
    {%- endif %}
{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) }}
{{ message['content'] | trim }}<turn|>
    {% if loop.last and tools %}
        {% break %}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|turn>model
{% endif %}
{{- {'said': messages[-1]['content']} | tojson }}
"""
CHAT: list[ChatMessage] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "the <cat> & 'dog', 你好"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "where?"},
]
DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}


def make_tokenizer() -> Tokenizer:
    """A small tokenizer built like Gemma's: BPE with byte fallback, spaces as ▁, no prefix space."""
    draft = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    draft.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    draft.train_from_iterator((text.replace(" ", "▁") for text in CORPUS), trainer)
    parts = json.loads(draft.to_str())
    vocab = parts["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    parts["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    parts["decoder"] = DECODER
    return Tokenizer.from_str(json.dumps(parts))


def save(folder: Path, options: dict[str, object] | None = None, template: str | None = TEMPLATE) -> Path:
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(options or {"bos_token": "<bos>", "eos_token": "<eos>"}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def load(folder: Path) -> Text:
    text = Text.from_folder(folder)
    assert text is not None
    return text


@pytest.fixture(scope="module", params=["small", "embedded"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "small":
        return make_tokenizer()
    path = EMBEDDED_PAIR / "target" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("this tree has no embedded pair")
    return Tokenizer.from_file(str(path))


def token(tokenizer: Tokenizer, piece: str) -> int:
    token_id = tokenizer.token_to_id(piece)
    assert token_id is not None
    return token_id


def byte_pieces(tokenizer: Tokenizer, values: Iterable[int]) -> list[int]:
    return [token(tokenizer, f"<0x{value:02X}>") for value in values]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(Pieces(tokenizer))
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def random_ids(tokenizer: Tokenizer, rng: random.Random, byte_share: float) -> list[int]:
    """Ids of the whole vocabulary and a few beyond it, mixed with byte pieces that seldom form characters."""
    size = tokenizer.get_vocab_size() + 3
    byte_ids = byte_pieces(tokenizer, range(256))
    return [
        rng.choice(byte_ids) if rng.random() < byte_share else rng.randrange(size) for _ in range(rng.randrange(30))
    ]


@pytest.mark.parametrize("byte_share", [0.0, 0.3, 0.9])
def test_streaming_random_ids_equals_decoding_them_at_once(tokenizer: Tokenizer, byte_share: float) -> None:
    rng = random.Random(1)
    for _ in range(300):
        ids = random_ids(tokenizer, rng, byte_share)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_streaming_any_script_equals_decoding_and_shows_no_broken_character(tokenizer: Tokenizer) -> None:
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.sample(SCRIPTS, 3)).replace("\ufffd", "")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_appears_whole_and_special_tokens_inside_it_change_nothing(tokenizer: Tokenizer) -> None:
    unicorn = byte_pieces(tokenizer, "🦄".encode())
    turn, letter = token(tokenizer, "<turn|>"), token(tokenizer, "a")
    assert streamed(tokenizer, [*unicorn[:2], turn, *unicorn[2:], letter]) == ["", "", "", "", "", "🦄a", ""]
    assert streamed(tokenizer, unicorn)[-1] == "🦄"


def test_each_token_is_decoded_at_most_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        decoded = 0

        def __init__(self) -> None:
            self.inner = make_tokenizer()

        def decode(self, ids: list[int]) -> str:
            self.decoded += len(ids)
            return self.inner.decode(ids)

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    counting = Counting()
    ids = counting.inner.encode("".join(SCRIPTS) * 20, add_special_tokens=False).ids
    streamed(counting, ids)  # type: ignore[arg-type]
    assert counting.decoded <= 3 * len(ids)


def test_conversations_equal_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = load(save(tmp_path))
    twin = transformers.PreTrainedTokenizerFast(
        tokenizer_object=text.tokenizer, bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATE
    )
    assert text.render(CHAT) == twin.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    ids = twin.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert text.encode(CHAT) == ids
    assert ids.count(text.bos_id) == 1


def test_bos_is_added_once_to_raw_text(tmp_path: Path) -> None:
    text = load(save(tmp_path))
    assert text.encode("cat") == text.encode("<bos>cat") == [text.bos_id, *text.encode("cat")[1:]]
    assert text.encode("cat")[1] != text.bos_id
    assert text.decode(text.encode(" the  cat<turn|>")) == " the  cat"


def test_special_tokens_in_text_are_parsed(tmp_path: Path) -> None:
    text = load(save(tmp_path))
    assert text.tokenizer.token_to_id("<|turn>") in text.encode("<|turn>user")


@pytest.mark.parametrize(
    "options",
    [
        {"chat_template": "{{ messages[0]['content'] }}", "bos_token": {"content": "<bos>"}},
        {
            "chat_template": [
                {"name": "x", "template": ""},
                {"name": "default", "template": "{{ messages[0].content }}"},
            ]
        },
    ],
)
def test_template_of_tokenizer_config_is_used(tmp_path: Path, options: dict[str, object]) -> None:
    text = load(save(tmp_path, options, template=None))
    assert text.encode([{"role": "user", "content": "cat"}]) == text.encode("cat")


def test_templates_run_in_a_sandbox(tmp_path: Path) -> None:
    text = load(save(tmp_path, template="{{ messages.__class__.__mro__ }}{{ messages.append(1) }}"))
    with pytest.raises(PromptError, match="chat template refused"):
        text.render(CHAT)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        ("\ud83d", "surrogate"),
        (["hello"], "message 1 is a str"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], "message 2 has the role 'tool'"),
        ([{"role": ["user"], "content": "x"}], "message 1 has the role"),
        ([{"content": "x"}], "role None"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content of type list"),
        ([{"role": "user"}], "content of type NoneType"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "key 'tool_calls'"),
    ],
)
def test_unusable_prompts_are_refused(tmp_path: Path, prompt: object, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        load(save(tmp_path)).encode(prompt)  # type: ignore[arg-type]


def test_messages_without_a_template_are_refused(tmp_path: Path) -> None:
    text = load(save(tmp_path, template=None))
    with pytest.raises(PromptError, match="no chat template"):
        text.encode(CHAT)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    assert Text.from_folder(tmp_path) is None
    save(tmp_path, template="{% if %}")
    with pytest.raises(CheckpointError, match="not valid jinja"):
        Text.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not valid JSON"):
        Text.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        Text.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Text.from_folder(tmp_path)


def reference_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Reads one character at a time and looks at everything so far: slow, and plainly right."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def cut_by_pushes(text: str, stops: list[str], rng: random.Random) -> tuple[str, bool]:
    stopper, shown = StopStrings(stops), ""
    while text:
        size = rng.randrange(1, 5)
        piece, ended = stopper.push(text[:size])
        shown, text = shown + piece, text[size:]
        if ended:
            return shown, True
    return shown + stopper.flush(), False


def test_stop_strings_cut_alike_however_the_text_arrives() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        text = "".join(rng.choices("abé", k=rng.randrange(20)))
        stops = ["".join(rng.choices("abé", k=rng.randrange(1, 5))) for _ in range(rng.randrange(4))]
        assert cut_by_pushes(text, stops, rng) == reference_stop(text, stops)


def test_stop_strings_hold_back_no_more_than_they_must() -> None:
    stopper = StopStrings(["\n\nQ:", "END"])
    assert stopper.push("hello\n") == ("hello", False)
    assert stopper.push("E") == ("\n", False)
    assert stopper.push("N") == ("", False)
    assert stopper.flush() == "EN"
    assert stopper.push("so END it") == ("so ", True)
    assert StopStrings([]).push("anything") == ("anything", False)


def test_stop_token_ids() -> None:
    tokenizer = make_tokenizer()
    assert stop_token_ids({"eos_token_id": [1, 106, 50]}, tokenizer) == {1, 106, 50}
    assert stop_token_ids({"eos_token_id": 7}, None) == {7}
    assert stop_token_ids({}, tokenizer) == {1, 5}
    assert stop_token_ids({}, None) == frozenset()
    for bad in ("1", [1, None], True, 1.0):
        with pytest.raises(ConfigError, match="eos_token_id must be an integer"):
            stop_token_ids({"eos_token_id": bad}, tokenizer)
