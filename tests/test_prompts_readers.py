"""Users' own files: each kind is told by its content, nothing is lost uncounted, and faults name their line."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from paceline.bench.prompts import load_prompts
from paceline.bench.prompts.files import FILE_MIB, MIB
from paceline.bench.prompts.readers import read_file
from paceline.bench.prompts.rows import Options, Reading
from paceline.errors import PacelineError, PromptError, UsageError

USER, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine.txt"  # a name that says nothing


def texts(reading: Reading) -> list[Any]:
    """Each prompt as [first letter of the role, text] pairs."""
    return [
        prompt.prompt
        if isinstance(prompt.prompt, str)
        else [(m["role"][0], m["content"]) for m in prompt.prompt if not isinstance(m, int)]
        for prompt in reading.prompts
    ]


def test_own_lines_stay_strict_and_lose_duplicates_with_a_count(mine: Path) -> None:
    row = {"id": "a", "category": "chat", "prompt": "x"}
    reading = read_file(write(mine, row, row | {"id": "b"}, row | {"id": "c", "prompt": "y"}))
    assert [prompt.id for prompt in reading.prompts] == ["a", "c"]
    assert reading.notes == ["1 dropped: the same prompt again"]
    with pytest.raises(PromptError, match=r'mine.txt:2: unknown key "temperature"'):
        read_file(write(mine, row, row | {"id": "b", "temperature": 1}))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "p"}, [("u", "p")]),
        ({"question": "p", "answer": "z"}, [("u", "p")]),
        ({"turns": ["p", "second"]}, [("u", "p")]),
        ({"instruction": "p", "input": "q", "output": "z"}, [("u", "p\n\nq")]),
        ({"instruction": "p", "context": "", "response": "z"}, [("u", "p")]),
        ({"messages": [USER, ANSWER, {"role": "user", "content": "p"}]}, [("u", "Hello"), ("a", "Hi"), ("u", "p")]),
        ({"messages": [USER, ANSWER]}, [("u", "Hello")]),
        ({"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "z"}]}, [("u", "p")]),
    ],
)
def test_plain_rows(mine: Path, row: dict[str, Any], text: object) -> None:
    for rows in ([row], [row, row | {"id": 7, "category": "c"}]):
        reading = read_file(write(mine, *rows))
        assert texts(reading) == [text]
    assert reading.prompts[0].id == "mine-1"
    mine.write_text(json.dumps([row, row], indent=2))
    assert texts(read_file(mine)) == [text]


def test_columns_are_stated_and_chosen_never_guessed(mine: Path) -> None:
    row = {"task_id": 3, "category": "maths", "prompt": "p", "question": "q", "temperature": 0.5, "level": 1}
    with pytest.raises(PromptError, match="prompt and question could each be the prompt; choose one with --column"):
        read_file(write(mine, row))
    reading = read_file(write(mine, row), Options(column="question"))
    assert texts(reading) == [[("u", "q")]]
    assert (reading.prompts[0].id, reading.prompts[0].category) == ("3", "maths")
    assert reading.notes[0] == 'prompts are taken from "question"; not used: prompt, level'
    assert "temperature is set to 0.5 (1 times) in the file, and not used here" in reading.notes
    with pytest.raises(PromptError, match=r"none of messages, .* among the columns \(text, label\).*--column"):
        read_file(write(mine, {"text": "x", "label": 1}))
    with pytest.raises(UsageError, match="no column 'body'; there are text, label"):
        read_file(mine, Options(column="body"))
    with pytest.raises(PromptError, match=r'mine.txt:2: the column "prompt" is missing'):
        read_file(write(mine, {"prompt": "x"}, {"mapping": {}}))
    with pytest.raises(PromptError, match=r'mine.txt:2: "prompt" is empty'):
        read_file(write(mine, {"prompt": "x"}, {"prompt": " "}))


def test_csv(mine: Path) -> None:
    for separator in ",;\t":
        head, cell = separator.join(("id", "category", "prompt")), f'"two\nlines{separator} ""quoted"""'
        mine.write_text(
            f"\ufeff{head}\r\n1{separator}a{separator}{cell}\r\n\r\n2{separator}{separator}x\r\n", newline=""
        )
        reading = read_file(mine)
        assert texts(reading) == [[("u", f'two\nlines{separator} "quoted"')], [("u", "x")]]
        assert [(p.id, p.category) for p in reading.prompts] == [("1", "a"), ("2", "uncategorised")]
    mine.write_text("text\nhello\n")
    assert texts(read_file(mine, Options(column="text"))) == [[("u", "hello")]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt,id\nx\n", r"mine.txt:2: 1 cells under 2 headings"),
        ("prompt,prompt\nx,y\n", r"mine.txt:1: the heading 'prompt' is given twice"),
        ("prompt,\nx,y\n", r"mine.txt:1: the heading '' is empty"),
        ('prompt\n"open\n', r"mine.txt:2: not a CSV table"),
        ("prompt\n", "holds no prompts"),
        ("Dear all, this is a letter\nand no table\n", r"mine.txt:2: 1 cells under 2 headings"),
        ("this is a letter\nand no table\n", r"mine.txt:1: neither JSON nor a table"),
        ("word\nx\n", r"mine.txt:2: none of .* is among the columns \(word\)"),
    ],
)
def test_tables_that_are_none(mine: Path, text: str, says: str) -> None:
    mine.write_text(text)
    with pytest.raises(PromptError, match=says):
        read_file(mine)


def node(parent: str, role: str, text: str | None) -> dict[str, Any]:
    """A node of ChatGPT's tree; thoughts for None."""
    content = {"content_type": "text", "parts": [text]} if text is not None else {"content_type": "thoughts"}
    return {"parent": parent, "message": {"author": {"role": role}, "content": content}}


CHATGPT: dict[str, Any] = {
    "title": "t",
    "id": "chat-9",
    "current_node": "e",
    "mapping": {
        "root": {"message": None, "parent": None},
        "s": node("root", "system", ""),
        "a": node("s", "user", "one"),
        "dead": node("a", "assistant", "no"),
        "th": node("a", "assistant", None),
        "b": node("th", "assistant", "two"),
        "hid": node("b", "user", "hidden"),
        "c": node("hid", "user", "three"),
        "e": node("c", "assistant", "four"),
    },
}
CHATGPT["mapping"]["hid"]["message"]["metadata"] = {"is_visually_hidden_from_conversation": True}
CLAUDE = {
    "uuid": "chat-9",
    "chat_messages": [
        {"sender": "human", "text": "one"},
        {"sender": "assistant", "text": "", "content": [{"type": "text", "text": "two"}]},
        {"sender": "human", "text": "three", "attachments": []},
        {"sender": "assistant", "text": "four"},
    ],
}
OPEN_WEBUI = {
    "id": "chat-9",
    "chat": {
        "history": {
            "currentId": "c",
            "messages": {
                "a": {"parentId": None, "role": "user", "content": "one"},
                "dead": {"parentId": "a", "role": "assistant", "content": "no"},
                "b": {"parentId": "a", "role": "assistant", "content": "two"},
                "c": {"parentId": "b", "role": "user", "content": "three"},
            },
        }
    },
}
LM_STUDIO = {
    "id": "chat-9",
    "messages": [
        {"versions": [{"role": "user", "content": [{"type": "text", "text": "one"}]}], "currentlySelected": 0},
        {
            "versions": [
                {"role": "assistant", "steps": [{"content": [{"type": "text", "text": "no"}]}]},
                {"role": "assistant", "steps": [{"content": [{"type": "text", "text": "two"}]}]},
            ],
            "currentlySelected": 1,
        },
        {"versions": [{"role": "user", "content": [{"type": "text", "text": "three"}]}], "currentlySelected": 0},
    ],
}
SHAREGPT = {
    "id": "chat-9",
    "conversations": [
        {"from": "human", "value": "one"},
        {"from": "gpt", "value": "two"},
        {"from": "human", "value": "three"},
    ],
}


@pytest.mark.parametrize("chat", [CHATGPT, CLAUDE, OPEN_WEBUI, LM_STUDIO, SHAREGPT])
def test_chat_exports(mine: Path, chat: dict[str, Any]) -> None:
    mine.write_text(json.dumps([chat], indent=1))
    first, last = [("u", "one")], [("u", "one"), ("a", "two"), ("u", "three")]
    for turns, wanted in (("first", [first]), ("last", [last]), ("all", [first, last])):
        assert texts(read_file(mine, Options(turns=turns))) == wanted
    reading = read_file(mine, Options(turns="all"))
    assert [prompt.id for prompt in reading.prompts] == ["chat-9#1", "chat-9#2"]
    assert {prompt.category for prompt in reading.prompts} == {"chat"}
    assert texts(read_file(write(mine, chat))) == [last]  # a line of JSON Lines is read alike
    with pytest.raises(UsageError, match="first, last, all, not 'some'"):
        Options(turns="some")


def test_neighbours_of_one_role_are_joined(mine: Path) -> None:
    pieces = [("human", "one"), ("assistant", "two"), ("assistant", "three"), ("human", "four"), ("human", "five")]
    reading = read_file(write(mine, {"chat_messages": [{"sender": role, "text": text} for role, text in pieces]}))
    assert texts(reading) == [[("u", "one"), ("a", "two\n\nthree"), ("u", "four\n\nfive")]]


def test_what_is_no_text_is_skipped_and_counted(mine: Path) -> None:
    image = {"sender": "human", "text": "see", "files": [{"name": "x.png"}]}
    tool = {"sender": "tool", "text": "42"}
    chats = [
        CLAUDE,
        {"chat_messages": [image]},
        {"chat_messages": [tool, *CLAUDE["chat_messages"]]},
        {"chat_messages": []},
        {"chat_messages": [{"sender": "human", "text": "  "}]},
    ]
    reading = read_file(write(mine, *chats))
    assert len(reading.prompts) == 1
    assert sorted(reading.notes) == ["1 skipped: a file", "1 skipped: tool calls", "2 skipped: no message of the user"]
    # The image comes after the first turn, which is therefore still good.
    write(mine, {"chat_messages": [*CLAUDE["chat_messages"], image]})
    assert texts(read_file(mine, Options(turns="first"))) == [[("u", "one")]]
    with pytest.raises(PromptError, match="holds no prompts: 1 skipped: a file"):
        read_file(mine)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (CHATGPT | {"current_node": "gone"}, "which of its messages is the last"),
        ({"mapping": {"a": {"parent": "b"}, "b": {"parent": "a"}}, "current_node": "a"}, "lead back to a first one"),
        ({"chat_messages": "x"}, '"chat_messages" must be a list'),
        ({"chat_messages": ["x"]}, "must be an object"),
        ({"chat": {}}, "neither history nor messages"),
        ({"messages": [{"versions": []}]}, "no version with role and content"),
        ({"conversations": [{"who": "me"}]}, "needs a role and content .* this one has who"),
        ({"conversations": [{"from": "human", "value": "\ud800"}]}, "half a surrogate pair"),
        ({"conversations": [{"from": "human", "value": 5}]}, "text or a list of parts, not int"),
    ],
)
def test_damaged_chats(mine: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(PromptError, match=rf"mine.txt:1: .*{says}"):
        read_file(write(mine, row))


BODY = {"model": "m", "messages": [{"role": "developer", "content": "Be brief"}, USER], "temperature": 0.7}
LOGS = [
    BODY,
    {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": BODY},
    {"id": "r1", "request": BODY, "response": {"choices": [{"message": ANSWER}]}},
    {"request": {"url": "/v1/chat/completions", "body": BODY}, "response": {}},
    {"model": "m", "instructions": "Be brief", "input": "Hello", "temperature": 0.7},
    {"model": "m", "instructions": "Be brief", "temperature": 0.7,
     "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]},
]  # fmt: skip


@pytest.mark.parametrize("row", LOGS)
def test_request_logs(mine: Path, row: dict[str, Any]) -> None:
    reading = read_file(write(mine, row, row))
    assert reading.kind == "a log of requests"
    assert texts(reading) == [[("s", "Be brief"), ("u", "Hello")]]
    assert reading.prompts[0].id == ("r1" if "r1" in row.values() else "mine-1")
    assert "temperature is set to 0.7 (2 times) in the file, and not used here" in reading.notes
    assert "1 dropped: the same prompt again" in reading.notes


def test_requests_that_are_no_prompt_are_counted(mine: Path) -> None:
    image = {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {}}]}
    rows = [
        BODY,
        BODY | {"messages": [image]},
        BODY | {"tools": [{}], "messages": [USER]},
        BODY | {"messages": [USER, ANSWER]},
        BODY | {"messages": [USER, ANSWER | {"content": None, "tool_calls": [{}]}, {"role": "tool", "content": "4"}]},
        {"model": "m", "prompt": [1, 2, 3]},
        {"model": "m", "input": "more", "previous_response_id": "r0"},
        {"model": "m", "prompt": "Once upon"},
    ]
    reading = read_file(write(mine, *rows))
    assert texts(reading) == [[("s", "Be brief"), ("u", "Hello")], "Once upon"]
    assert sorted(note for note in reading.notes if "skipped" in note) == [
        "1 skipped: a prompt of token ids, or several prompts in one request",
        "1 skipped: an image",
        "1 skipped: does not end with a message of the user",
        "1 skipped: goes on from an answer that the log does not hold",
        "1 skipped: offers tools",
        "1 skipped: tool calls",
    ]


def test_mixed_files_are_refused(mine: Path) -> None:
    with pytest.raises(PromptError, match=r"mine.txt:2: a ChatGPT export in a file that began as a log of requests"):
        read_file(write(mine, BODY, CHATGPT))
    mine.write_text(json.dumps([CLAUDE, 5]))
    with pytest.raises(PromptError, match=r"mine.txt, entry 2: must be a JSON object, not int"):
        read_file(mine)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no prompts"),
        (b"\xef\xbb\xbf \n", "holds no prompts"),
        (b"[]", "holds no prompts"),
        (b"PK\x03\x04rest", "is a zip archive; unpack it"),
        (gzip.compress(b"x"), "is compressed with gzip; unpack it"),
        (b"SQLite format 3\x00", "is a database"),
        (b"Salted__abcd", "is encrypted; decrypt it"),
        (b"-----BEGIN PGP MESSAGE-----", "is encrypted"),
        (b"\xff\xfe{\x00", "UTF-16 text; save it as UTF-8"),
        (b"{}\x00", "is a binary file"),
        (b'{"prompt": "\xe4"}', r"mine.txt:1 is not UTF-8 text \(byte 12\)"),
        (b"prompt\n\xe4", "is not UTF-8 text"),
        (b'{"prompt": "x"}\n{nope\n', "mine.txt:2: not JSON"),
        (b"{nope\n", "mine.txt:1: not JSON"),
        (b'[\n{"prompt": "x"},\n{"prompt": }]', "mine.txt:3: not JSON"),
        (b'{\n"prompt": "x",\n', "mine.txt:3: not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{" + b'"a":{' * 100_000, "nested too deeply|not JSON"),
        (b"[5]", "entry 1: must be a JSON object, not int"),
    ],
)
def test_files_that_are_no_prompts(mine: Path, data: bytes, says: str) -> None:
    mine.write_bytes(data)
    with pytest.raises(PacelineError, match=says):
        read_file(mine)


def test_size_limits(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mine.open("wb") as file:
        file.write(b'{"prompt": "x"}\n')
        file.truncate((FILE_MIB + 1) * MIB)  # sparse: takes no room
    with pytest.raises(PromptError, match=f"more than {FILE_MIB}"):
        read_file(mine)
    monkeypatch.setattr("paceline.bench.prompts.files.LINE_MIB", 1)
    write(mine, {"prompt": "x"}, {"prompt": "x" * MIB})
    with pytest.raises(PromptError, match=r"mine.txt:2: the line is longer than 1 MiB"):
        read_file(mine)


def test_bench_hears_what_was_left_out(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    assert len(load_prompts(write(mine, BODY, BODY), heard.append)) == 1
    assert any("1 dropped" in note for note in heard)
    load_prompts(str(mine))
    out, err = capsys.readouterr()
    assert not out
    assert f"paceline: {mine}: 1 dropped: the same prompt again" in err


ODD: list[Any] = [None, 0, -1.5, True, "", "x", [], [None], {}, {"role": 1}, ["a", 1], {"a": {"b": []}}]


def spoil(value: Any, rng: random.Random) -> Any:
    """A copy of `value` in which one node, chosen at random, is something odd or gone."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(ODD)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [spoil(item, rng) if i == place else item for i, item in enumerate(value)]
    key = rng.choice(list(value))
    if rng.random() < 0.2:
        return {k: v for k, v in value.items() if k != key}
    return {k: spoil(v, rng) if k == key else v for k, v in value.items()}


@pytest.mark.parametrize("row", [CHATGPT, CLAUDE, OPEN_WEBUI, LM_STUDIO, SHAREGPT, *LOGS, {"messages": [USER]}])
def test_spoilt_rows_are_read_or_refused_but_never_crash(mine: Path, row: dict[str, Any]) -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(100):
        write(mine, spoil(row, rng))
        try:
            reading = read_file(mine, Options(turns=rng.choice(["first", "last", "all"])))
        except PacelineError:
            refused += 1
        else:
            assert all(prompt.prompt and prompt.id and prompt.category for prompt in reading.prompts)
    assert refused > 10


def test_spoilt_bytes_are_read_or_refused_but_never_crash(mine: Path) -> None:
    rng = random.Random(1)
    good = (json.dumps(CHATGPT) + "\n").encode() + b'id,prompt\n1,"x"\n' + json.dumps([BODY], indent=1).encode()
    for _ in range(300):
        start = rng.randrange(len(good))
        data = bytearray(good[start : start + rng.randrange(400)])
        for _ in range(rng.randrange(4)):
            data.insert(rng.randrange(len(data) + 1), rng.randrange(256))
        mine.write_bytes(bytes(data))
        with contextlib.suppress(PacelineError):
            read_file(mine)
