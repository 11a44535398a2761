"""Writes the arithmetic of paceline/roofline.py into docs/performance.md, between its markers.

`<!-- roofline -->` ... `<!-- /roofline -->` holds tables that follow from the published configurations alone: nothing
in them is measured. `--check` exits 1 when the document says something else than the arithmetic.

    python benchmarks/performance_table.py
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from paceline.roofline import (
    Round,
    distinct,
    draft_step,
    kv_held,
    kv_per_token,
    kv_read,
    parameters,
    pass_flops,
    prompt_flops,
    traffic,
)
from paceline.shapes import drafter_config, target_config

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- roofline -->).*?(<!-- /roofline -->)", re.DOTALL)
NAMES = {"e2b": "E2B", "e4b": "E4B", "12b": "12B", "26b-a4b": "26B-A4B", "31b": "31B"}
CONTEXTS = {"1k": 1024, "8k": 8192, "32k": 32768}
BATCHES, DRAFTS = (1, 8, 16), (0, 2, 4, 8)
# Bytes a second, given by hand as examples: what H100 and H200 cards have been seen to read, not what one is sold with.
BANDWIDTHS = {"H100": 3.0e12, "H200": 4.3e12}
PEAK_FLOPS = 989e12  # dense bf16, the datasheet of both; kernels stay below it


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def digits(value: float) -> str:
    """Three significant digits, or all digits of the whole number."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value else "-"


def giga(value: float) -> str:
    """Decimal GB."""
    return digits(value / 1e9)


def mega(value: float) -> str:
    """Decimal MB."""
    return digits(value / 1e6)


def weights_table() -> str:
    """Weight bytes of a decoded token by class, and of one draft step."""
    rows = []
    for name, shown in NAMES.items():
        one = traffic(target_config(name), None, Round())
        body, head, _ = draft_step(drafter_config(name), Round())
        step = (mega(body), mega(head), f"{(body + head) / (one.dense + one.experts + one.head):.1%}")
        rows.append((shown, giga(one.dense), giga(one.experts), giga(one.head), _whole(name), *step))
    columns = ("", "dense, GB", "experts, GB", "LM head, GB", "a token, GB")
    return table((*columns, "draft step: body, MB", "its head, MB", "a step / a token"), rows)


def _whole(name: str) -> str:
    one = traffic(target_config(name), None, Round())
    return f"**{giga(one.dense + one.experts + one.head)}**"


def kv_table() -> str:
    """Bytes of keys and values of one sequence: held, read by a pass, read by a draft step."""
    rows = []
    for name, shown in NAMES.items():
        target, drafter = target_config(name), drafter_config(name)
        sliding, full = kv_per_token(target)
        columns = partial(kv_held, target), partial(kv_read, target), partial(kv_read, drafter.text)
        rows.append((shown, f"{sliding:,.0f} + {full:,.0f}", *(_contexts(column) for column in columns)))
    spelled = " / ".join(CONTEXTS)
    heads = (f"held at {spelled}, MB", "a pass reads, MB", "a draft step reads, MB")
    return table(("", "a token: sliding + full, bytes", *heads), rows)


def _contexts(of: Callable[[int], float]) -> str:
    return " / ".join(mega(of(context)) for context in CONTEXTS.values())


def time_table() -> str:
    """The least milliseconds of a round at each bandwidth."""
    return _rounds(DRAFTS, lambda name, batch, k: " / ".join(f"{t:.2f}" for t in _milliseconds(name, batch, k)))


def even_table() -> str:
    """A round's bytes over those of a plain pass: the tokens a round must bring for drafting to pay."""
    return _rounds(DRAFTS[1:], lambda name, batch, k: f"{_bytes(name, batch, k) / _bytes(name, batch, 0):.2f}")


def _rounds(drafts: Sequence[int], cell: Callable[[str, int, int], str]) -> str:
    rows = [
        (f"{shown}, batch {batch}", *(cell(name, batch, k) for k in drafts))
        for name, shown in NAMES.items()
        for batch in BATCHES
    ]
    return table(("", *(f"k = {k}" for k in drafts)), rows)


def _bytes(name: str, batch: int, k: int) -> float:
    drafter = drafter_config(name) if k else None
    return traffic(target_config(name), drafter, Round(batch=batch, k=k, context=CONTEXTS["1k"])).total


def _milliseconds(name: str, batch: int, k: int) -> list[float]:
    return [_bytes(name, batch, k) / bandwidth * 1e3 for bandwidth in BANDWIDTHS.values()]


def expert_table() -> str:
    """Distinct experts of a layer, and bytes of all layers' experts, over the rows of a pass."""
    name = "26b-a4b"
    own, experts = parameters(target_config(name)), target_config(name).experts
    assert experts is not None
    rows = [1, 3, 5, 9, 16, 24, 40, 72, 144]
    met = [distinct(experts.count, experts.active, n) for n in rows]
    first = (f"distinct of {experts.count}", *(f"{m:.1f}" for m in met))
    return table(
        ("rows of a pass", *map(str, rows)),
        [first, ("GB of experts", *(giga(2 * own.expert * m) for m in met))],
    )


def flops_table() -> str:
    """Operations of a row and of prompts, and attention's share of those."""
    rows = []
    for name, shown in NAMES.items():
        target = target_config(name)
        prompts = [prompt_flops(target, n) for n in CONTEXTS.values()]
        cells = (f"{digits(p.total / 1e12)} ({p.attention / p.total:.0%})" for p in prompts)
        rows.append((shown, digits(pass_flops(target, 1, CONTEXTS["1k"]).total / 1e9), *cells))
    heads = (f"prompt of {n}, TFLOP (attention)" for n in CONTEXTS)
    return table(("", "a row at 1k, GFLOP", *heads), rows)


def crossing() -> str:
    """From how many rows on a bf16 matrix takes longer to multiply than to read."""
    rows = " and ".join(f"{PEAK_FLOPS / b:.0f} rows ({name})" for name, b in BANDWIDTHS.items())
    return (
        "A bf16 weight is two bytes once and two operations for each row: multiplying takes longer than reading from"
        f" {rows} on, at {PEAK_FLOPS / 1e12:.0f} TFLOP/s, the datasheet's figure, which kernels do not reach."
    )


def block() -> str:
    """Everything between the markers."""
    speeds = " / ".join(f"{b / 1e12:.1f} TB/s ({name})" for name, b in BANDWIDTHS.items())
    parts = [
        "**Weights that a decoded token reads, and one draft step.** bf16, batch 1, keys and values left out.",
        weights_table(),
        "**Keys and values of one sequence.** bf16. Sliding layers stop growing at their window; layers that share"
        " keys and values (E2B, E4B) hold none and read their owner's.",
        kv_table(),
        f"**The least a round can take, in ms, at {speeds}.** Context 1k for every sequence; example bandwidths given"
        " by hand; experts routed uniformly.",
        time_table(),
        "**What drafting must bring: a round's bytes over those of a plain pass.** At the bound, a round pays when it"
        " brings more tokens than this, the target's own counted. The same at any bandwidth.",
        even_table(),
        "**26B-A4B: experts that a pass reads when rows route uniformly.**",
        expert_table(),
        "**Operations.** A prompt's LM head runs for its last token only.",
        flops_table(),
        crossing(),
    ]
    return "\n\n".join(parts)


def render(text: str) -> str:
    """`text` with the marked place filled."""
    filled = block()
    return MARKED.sub(lambda match: f"{match[1]}\n{filled}\n{match[2]}", text)


def main() -> None:
    """Rewrites the document, or only says that it is stale."""
    parser = argparse.ArgumentParser(description="Writes the arithmetic of the roofline into docs/performance.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the document is stale")
    flags = parser.parse_args()
    text = DOCUMENT.read_text("utf-8")
    stale = text != render(text)
    if stale and not flags.check:
        DOCUMENT.write_text(render(text), "utf-8")
    if stale:
        print(f"{DOCUMENT.name} {'is stale' if flags.check else 'rewritten'}", file=sys.stderr)
    sys.exit(bool(flags.check and stale))


if __name__ == "__main__":
    main()
