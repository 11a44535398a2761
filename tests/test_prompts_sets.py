"""Named sets: what ships is counted and licensed, what is fetched is checked, names are told from files."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from paceline.bench.prompts import load_prompts
from paceline.bench.prompts.describe import describe, lengths
from paceline.bench.prompts.fetch import cache_path, fetch, fetched_prompts, named
from paceline.bench.prompts.prompt import BenchPrompt
from paceline.bench.prompts.recipes import Recipe
from paceline.bench.prompts.sets import SETS, PromptSet
from paceline.errors import PromptError, UsageError

SHIPPED = [prompt_set for prompt_set in SETS.values() if prompt_set.file]
FETCHED = [prompt_set for prompt_set in SETS.values() if prompt_set.recipe]
MAY_SHIP = {"MIT", "Apache-2.0", "MIT OR Apache-2.0", "PSF-2.0", "PostgreSQL", "public domain",
            "public (Universal Declaration of Human Rights)"}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("prompt_set", SHIPPED, ids=lambda s: str(s.name))
def test_shipped_set_is_what_the_table_says(prompt_set: PromptSet) -> None:
    prompts = load_prompts(prompt_set.name)
    assert len(prompts) == prompt_set.prompts
    assert len({str(prompt.prompt) for prompt in prompts}) == len(prompts)
    rows = [
        json.loads(line) for line in files("paceline").joinpath(str(prompt_set.file)).read_text("utf-8").splitlines()
    ]
    assert {row["license"] for row in rows} <= MAY_SHIP
    assert all(row["source"] for row in rows)


def test_shipped_sets_are_small_and_have_their_notices() -> None:
    folder = files("paceline").joinpath("assets/sets")
    sizes = {Path(str(file)).name: len(file.read_bytes()) for file in folder.iterdir()}
    assert sum(sizes.values()) < 1_300_000
    assert sizes.keys() == {f"{s.name}.jsonl" for s in SHIPPED if s.name != "embedded"} | {"README.md"}
    page = folder.joinpath("README.md").read_text("utf-8")
    for prompt_set in SHIPPED[1:]:
        assert f"| {prompt_set.name} | {prompt_set.prompts} |" in page


def test_lengths_are_as_the_table_says() -> None:
    for name, least, greatest in (("summarise", 1500, 5100), ("long-context", 11_000, 26_200), ("rag", 1800, 4000)):
        found = describe(load_prompts(name)).characters
        assert least <= found.least <= found.greatest <= greatest


def test_every_rag_question_has_one_passage_of_four_that_shares_its_words() -> None:
    """By the count of rare words in common, the passage meant is the best of four for most questions."""
    best, places = 0, set()
    prompts = load_prompts("rag")
    for number, prompt in enumerate(prompts):
        assert isinstance(prompt.prompt, list)
        _, *passages, question = str(prompt.prompt[0]["content"]).split("\n\n")  # type: ignore[index, call-overload]
        assert len(passages) == 4
        words = {word.strip("?,.").lower() for word in question.split() if len(word) > 4}
        scores = [sum(word in passage.lower() for word in words) for passage in passages]
        meant = number % 4
        best += scores[meant] == max(scores)
        places.add(meant)
    assert places == {0, 1, 2, 3}
    assert best >= 0.8 * len(prompts)


def test_names_parts_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_prompts("embedded") == load_prompts(None) == load_prompts(Path("embedded"))
    coding = load_prompts("mt-bench:coding")
    assert len(coding) == 10
    assert {prompt.category for prompt in coding} == {"coding"}
    with pytest.raises(UsageError, match="mt-bench has no category 'cooking'; there are writing, "):
        load_prompts("mt-bench:cooking")
    with pytest.raises(PromptError, match=r"'mt-bank' is neither a file nor a prompt set; .*mt-bench"):
        load_prompts("mt-bank")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rag").mkdir()  # a folder is no prompts
    assert len(load_prompts("rag")) == 30
    (tmp_path / "gsm8k").write_text('{"prompt": "x"}\n')
    assert len(load_prompts("gsm8k")) == 1  # a file of that name wins


ROWS = [{"question": "one"}, {"question": "two"}]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def make(index: int, row: dict[str, Any], where: str) -> BenchPrompt:
    return BenchPrompt(f"q{index}", "c", row["question"])


def set_of(data: bytes, url: str = "http://127.0.0.1:9/x.jsonl", rows: int = 2) -> PromptSet:
    return PromptSet(
        "mine", rows, "", "someone", "CC", recipe=Recipe(url, hashlib.sha256(data).hexdigest(), rows, make)
    )


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server on the loopback and what it serves, by path: the stub that stands for the network."""
    served: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = served.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", served
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_fetch_checks_caches_and_reads(server: tuple[str, dict[str, bytes]], cache: Path, pack: Any) -> None:
    url, served = server
    data = served["/x.jsonl"] = pack(DATA)
    prompt_set = set_of(data, f"{url}/x.jsonl")
    with pytest.raises(PromptError, match=r"does not ship .* licence \(CC\); `paceline prompts fetch mine` gets it"):
        fetched_prompts(prompt_set)
    path = fetch(prompt_set)
    assert path == cache_path(prompt_set) == cache / "paceline" / "prompts" / "mine.jsonl"
    assert [prompt.prompt for prompt in fetched_prompts(prompt_set)] == ["one", "two"]
    assert json.loads(path.read_text().split("\n")[0])["source"] == "someone (CC)"
    served.clear()
    assert fetch(prompt_set) == path  # from the cache


def test_fetch_refuses_another_file_and_leaves_nothing(server: tuple[str, dict[str, bytes]], cache: Path) -> None:
    url, served = server
    served["/x.jsonl"] = DATA.replace(b"two", b"2wo")
    with pytest.raises(PromptError, match=r"x\.jsonl is not the file at .*: its SHA-256 is"):
        fetch(set_of(DATA, f"{url}/x.jsonl"))
    served["/x.jsonl"] = DATA
    with pytest.raises(PromptError, match="has 2 rows, not 3; fetch it again"):
        fetch(set_of(DATA, f"{url}/x.jsonl", rows=3))
    with pytest.raises(PromptError, match=r"cannot fetch .*none.jsonl .*--from"):
        fetch(set_of(DATA, f"{url}/none.jsonl"))
    with pytest.raises(PromptError, match="get the file on another machine"):
        fetch(set_of(DATA))  # nobody listens
    assert not cache.exists()


def test_fetch_from_a_copy(tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    with pytest.raises(PromptError, match=r"cannot read .*copy\.jsonl"):
        fetch(set_of(DATA), copy)
    copy.write_bytes(DATA)
    assert len(copy.read_bytes()) == len(DATA)
    fetch(set_of(DATA), copy)
    assert len(fetched_prompts(set_of(DATA))) == 2


def test_what_is_not_fetched() -> None:
    with pytest.raises(UsageError, match="rag ships with Paceline"):
        fetch(named("rag"))
    with pytest.raises(UsageError, match="no prompt set is called 'x'; there are embedded, "):
        named("x")


SAMPLES = {
    "spec-bench": ({"question_id": 81, "category": "writing", "turns": ["one", "two"]}, "writing", "one"),
    "gsm8k-test": ({"question": "one", "answer": "1"}, "maths", "one"),
    "nq-rag": ({"question": "who", "ctxs": [{"title": "t", "text": "x"}]}, "rag", "[1] t\nx\n\nQuestion: who"),
    "long-reports": ({"instructions": ["Sum up."], "input": "text"}, "long context", "Sum up.\n\ntext"),
}


@pytest.mark.parametrize("prompt_set", FETCHED, ids=lambda s: str(s.name))
def test_rows_of_public_sets(prompt_set: PromptSet) -> None:
    """The files themselves are not here; a row in their shape is."""
    row, category, text = SAMPLES[prompt_set.name]
    data = json.dumps(row).encode()
    assert prompt_set.recipe
    recipe = replace(prompt_set.recipe, sha256=hashlib.sha256(data).hexdigest(), rows=1)
    (prompt,) = recipe.prompts(data, "x.jsonl")
    assert prompt.category == category
    assert isinstance(prompt.prompt, list)
    assert str(prompt.prompt[0]["content"]).endswith(text)  # type: ignore[index, call-overload]
    assert len(prompt_set.recipe.sha256) == 64
    assert "@" not in prompt_set.recipe.url


def test_description() -> None:
    chat: Any = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    same = "x" * 250
    prompts = [BenchPrompt("1", "a", chat), BenchPrompt("2", "a", same), BenchPrompt("3", "b", same + "y"),
               BenchPrompt("4", "b", "Привет, мир"), BenchPrompt("5", "b", "123")]  # fmt: skip
    found = describe(prompts, lambda text: len(text.split()))
    assert found.categories == {"b": 3, "a": 2}
    assert found.scripts == {"Latin": 3, "Cyrillic": 1, "none": 1}
    assert (found.with_history, found.shared_beginning) == (1, 2)
    assert found.tokens
    assert (found.tokens.least, found.tokens.greatest, found.tokens.total) == (1, 3, 8)
    assert lengths([5]).median == lengths([5]).p90 == 5
    ten = lengths(list(range(10, 0, -1)))
    assert (ten.least, ten.median, ten.p90, ten.greatest, ten.total) == (1, 6, 10, 10, 55)
