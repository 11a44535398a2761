"""The prompt sets that have names: those inside the package, and those that are fetched because of their licence."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import paceline.bench.prompts.recipes as recipes
from paceline.bench.prompts.prompt import BenchPrompt
from paceline.bench.prompts.recipes import Recipe
from paceline.bench.prompts.strict import parse_prompts

EMBEDDED = "embedded"
APACHE = "Apache-2.0"
FIRST_TURNS = "first turns; later ones need the model's own answers"
DOCS = "documentation of SQLite, PostgreSQL, Python, Erlang/OTP and Rust"
DOCS_LICENCE = "public domain, PostgreSQL, PSF-2.0, Apache-2.0"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """A set: what it asks, how many prompts, whose they are and under which licence.

    `file` is its place in the package's assets; where there is none, `recipe` says how it is fetched.
    """

    name: str
    prompts: int
    about: str
    source: str
    licence: str
    file: str | None = None
    recipe: Recipe | None = None


def _shipped(name: str, prompts: int, about: str, source: str, licence: str) -> PromptSet:
    return PromptSet(name, prompts, about, source, licence, file=f"assets/sets/{name}.jsonl")


def _fetched(name: str, about: str, source: str, licence: str, recipe: Recipe) -> PromptSet:
    return PromptSet(name, recipe.rows, about, source, licence, recipe=recipe)


SETS = {
    s.name: s
    for s in (
        PromptSet(EMBEDDED, 344, "the default of bench: six categories, at most 900 characters each",
                  "parts of the sets below", "MIT, Apache-2.0, public", file="assets/prompts.jsonl"),
        _shipped("mt-bench", 80, f"chat in eight categories ({FIRST_TURNS})", "lm-sys/FastChat", APACHE),
        _shipped("vicuna", 80, "chat in nine categories", "lm-sys/FastChat", APACHE),
        _shipped("self-instruct", 252, "tasks as users of applications put them", "yizhongw/self-instruct", APACHE),
        _shipped("humaneval", 164, "Python functions to complete", "openai/human-eval", "MIT"),
        _shipped("gsm8k", 300, "school maths, the first 300 test questions", "openai/grade-school-math", "MIT"),
        _shipped("code-edit", 24, "Python files to rewrite", "CPython's standard library", "PSF-2.0"),
        _shipped("translation", 60, "English from and to six languages", "NLTK udhr2", "public (UDHR)"),
        _shipped("summarise", 40, "texts of 1,500 to 5,000 characters to summarise", DOCS, DOCS_LICENCE),
        _shipped("rag", 30, "a question and four passages, one of which answers it", DOCS, DOCS_LICENCE),
        _shipped("long-context", 15, "documents of 11,000 to 26,000 characters and a task", DOCS, DOCS_LICENCE),
        _fetched("spec-bench", f"six tasks ({FIRST_TURNS})", "hemingkx/Spec-Bench",
                 "Apache-2.0; texts: WMT14, CNN/DailyMail (c) publishers, Wikipedia CC-BY-SA-3.0", recipes.SPEC_BENCH),
        _fetched("gsm8k-test", "school maths, all test questions", "openai/grade-school-math", "MIT", recipes.GSM8K),
        _fetched("nq-rag", "a question and the passage that answers it", "nelson-liu/lost-in-the-middle",
                 "MIT; texts: Wikipedia CC-BY-SA-3.0", recipes.NQ_ORACLE),
        _fetched("long-reports", "government reports to summarise", "OpenLMLab/LEval",
                 "GPL-3.0; texts vary", recipes.REPORTS),
    )
}  # fmt: skip


def shipped_prompts(prompt_set: PromptSet) -> list[BenchPrompt]:
    """The prompts of a set that lies in the package."""
    text = files("paceline").joinpath(str(prompt_set.file)).read_text("utf-8")
    return parse_prompts(text, f"the set {prompt_set.name}")
