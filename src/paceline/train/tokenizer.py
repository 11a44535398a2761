"""A small byte-pair tokenizer in Gemma 4's layout, trained on our own text so that it may ship.

Ids 0..255 are control tokens, 256..511 the bytes, everything above is learned. Code written against
Gemma 4's control ids (<bos> 2, <|turn> 105, <turn|> 106, ...) therefore runs unchanged on it.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from paceline.errors import CheckpointError, ConfigError

__all__ = ["CHAT_TEMPLATE", "control_tokens", "load_tokenizer", "save", "tokenizer_sha256", "train_tokenizer"]

CONTROL_COUNT = 256
BYTE_COUNT = 256
SPACE = "\u2581"

NAMED_CONTROLS = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>",
    46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>",
    50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>',
    98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>",
}  # fmt: skip

# Gemma leaves the splitting to its 262,144 merges; 4,096 pieces need help to be spent well. A word takes one leading
# space, so that the last space of an indentation joins the word and `return` is one piece wherever it stands; the
# spaces before it merge into one run. Digits stand alone, as in Gemma. Every character matches some branch.
SPLIT = "|".join(
    [
        r"'(?:[sdmt]|ll|ve|re)(?!\p{L})",  # it's, don't, we'll
        rf"{SPACE}?\p{{L}}[\p{{L}}\p{{M}}]*",  # a word
        r"\p{N}",  # a digit
        rf"{SPACE}?[^\s{SPACE}\p{{L}}\p{{N}}]+",  # punctuation, such as `):` or ` ==`
        rf"{SPACE}+(?={SPACE})",  # an indentation, less the space that joins the next piece
        rf"{SPACE}",
        r"\n+",
        r"\s+",
    ]
)

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|turn>' ~ ('model' if message['role'] == 'assistant' else message['role']) ~ '\\n' }}
{{- message['content'] | trim ~ '<turn|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|turn>model\\n' }}
{%- endif %}
"""


def control_tokens() -> list[str]:
    """The 256 control tokens in id order: Gemma 4's names where it has one, `<unusedN>` elsewhere."""
    return [NAMED_CONTROLS.get(i, f"<unused{i - 5}>") for i in range(CONTROL_COUNT)]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> Tokenizer:
    """Learn merges from `texts` and return a tokenizer with exactly `vocab_size` ids.

    Any text survives encoding and decoding unchanged, except that U+2581 comes back as a space (as in Gemma)
    and a control token spelled out in the text becomes that control token.
    Raises ConfigError when the vocabulary has no room for the controls, the bytes and an alphabet, or when the
    text is too small to fill it.
    """
    if not 1024 <= vocab_size <= 65536:
        raise ConfigError(f"vocab_size is {vocab_size}; choose between 1024 and 65536, so that ids fit in 16 bits")
    tokenizer = _untrained()
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(BYTE_COUNT)]
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control_tokens() + byte_pieces,
        limit_alphabet=128,  # rarer characters are spelled in bytes rather than taking a piece each
        max_token_length=16,  # no piece for `================================`
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = tokenizer.get_vocab_size()
    if learned != vocab_size:
        raise ConfigError(f"the text supports only {learned} pieces, not {vocab_size}; give more text or ask for fewer")
    return _bytes_as_pieces(tokenizer)


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _bytes_as_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """Take the byte pieces off the list of control tokens.

    The trainer needs them there to fix their ids, but left there they would vanish from decoded text and the
    five characters `<0x41>` would encode to the byte.
    """
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < CONTROL_COUNT]
    return Tokenizer.from_str(json.dumps(described))


def save(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps(_transformers_config(), indent=1) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _transformers_config() -> dict[str, Any]:
    """What Transformers needs to load the same tokenizer.

    The class is the generic one: GemmaTokenizer would rebuild the pipeline with Gemma's own splitting.
    """
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}
    extra = {"sot_token": 105, "eot_token": 106, "soc_token": 100, "eoc_token": 101, "think_token": 98}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "add_bos_token": False,
        "add_eos_token": False,
        "padding_side": "left",
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
        "extra_special_tokens": {key: NAMED_CONTROLS[token] for key, token in extra.items()},
    }


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `folder`/tokenizer.json. Raises CheckpointError when it is missing or unreadable."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; give a folder that `save` has written")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer file ({error}); write it again") from error


def tokenizer_sha256(folder: Path) -> str:
    """Hex digest of tokenizer.json: ties an encoded corpus or a checkpoint to the ids it was made with."""
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
