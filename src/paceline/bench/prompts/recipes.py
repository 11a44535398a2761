"""Public sets that may not be shipped: where their files are, what they must hash to, how a row becomes a prompt."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paceline.bench.prompts.prompt import BenchPrompt, checked_text, json_object
from paceline.errors import PromptError
from paceline.types import ChatMessage

GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True, slots=True)
class Recipe:
    """One file at a fixed commit (`url`, `sha256`), its number of rows, and what to make of a row."""

    url: str
    sha256: str
    rows: int
    make: Callable[[int, dict[str, Any], str], BenchPrompt]

    def prompts(self, data: bytes, name: str) -> list[BenchPrompt]:
        """The prompts in the file's bytes; PromptError where they are not the file that was meant."""
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise PromptError(
                f"{name} is not the file at {self.url}: its SHA-256 is {found[:12]}..., not {self.sha256[:12]}..."
            )
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")
        rows = [(f"{name}:{i}", line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if len(rows) != self.rows:
            raise PromptError(f"{name} has {len(rows)} rows, not {self.rows}; fetch it again")
        return [self.make(i, json_object(line, where), where) for i, (where, line) in enumerate(rows)]


def _chat(identity: str, category: str, text: str) -> BenchPrompt:
    return BenchPrompt(identity, category, [ChatMessage(role="user", content=text)])


def _spec_bench(index: int, row: dict[str, Any], where: str) -> BenchPrompt:
    turns = row.get("turns") or [None]
    category = checked_text(row.get("category"), "category", where)
    return _chat(f"spec-bench-{row.get('question_id', index)}", category, checked_text(turns[0], "turns", where))


def _gsm8k(index: int, row: dict[str, Any], where: str) -> BenchPrompt:
    return _chat(f"gsm8k-test-{index}", "maths", checked_text(row.get("question"), "question", where))


def _lost_in_the_middle(index: int, row: dict[str, Any], where: str) -> BenchPrompt:
    passages = [f"[{i}] {passage['title']}\n{passage['text']}" for i, passage in enumerate(row["ctxs"], start=1)]
    question = checked_text(row.get("question"), "question", where)
    ask = "Answer the question from the passages below, and name the passage that you used."
    return _chat(f"nq-{index}", "rag", "\n\n".join([ask, *passages, f"Question: {question}"]))


def _l_eval(index: int, row: dict[str, Any], where: str) -> BenchPrompt:
    ask = checked_text(row["instructions"][0], "instructions", where)
    return _chat(f"report-{index}", "long context", f"{ask}\n\n{checked_text(row.get('input'), 'input', where)}")


SPEC_BENCH = Recipe(
    f"{GITHUB}/hemingkx/Spec-Bench/fd2c1cd7d2201ef71db4c5f4e455008f017967bf/data/spec_bench/question.jsonl",
    "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04", 480, _spec_bench,
)  # fmt: skip
GSM8K = Recipe(
    f"{GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/test.jsonl",
    "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14", 1319, _gsm8k,
)  # fmt: skip
NQ_ORACLE = Recipe(
    f"{GITHUB}/nelson-liu/lost-in-the-middle/29b8a6d042ce29abccee3db1a73171a107d7e6af/qa_data/nq-open-oracle.jsonl.gz",
    "6a7f72b846f663a133ef952244e5a4e43f06bcf190afe34e8fbe687ce0d1653e", 2655, _lost_in_the_middle,
)  # fmt: skip
REPORTS = Recipe(
    f"{GITHUB}/OpenLMLab/LEval/cd34b050269148aed75acbbe4a599873ad0f37e9/LEval-data/Open-ended-tasks/gov_report_summ.jsonl",
    "72ff9fc383afef70208e12598536fedb3c86341c6e6218cb2061caa049f3e0db", 14, _l_eval,
)  # fmt: skip
