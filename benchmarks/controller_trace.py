"""Records a trace on the embedded pair: what eight drafts would have come to at every position of real texts.

`paceline simulate benchmarks/results/trace_embedded.jsonl` replays any policy on it. Texts are decoded plainly, so
every policy is replayed on the same text; the round times, of each draft length, are measured beside it and stand in
the first round of each request.

    python benchmarks/controller_trace.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import common
from controller_cpu import CLOCKS, KINDS, SAMPLED

from paceline.bench.prompts import BenchPrompt, load_prompts, sample
from paceline.bench.record import check_writable, machine
from paceline.calibration import calibrate
from paceline.control.cost import CostTable
from paceline.control.trace import Row, Trace, write_trace
from paceline.drafters import MtpDraft
from paceline.engine import Engine, Writer
from paceline.errors import PacelineError
from paceline.llm import LLM
from paceline.recorder import Recorder
from paceline.steering import LONGEST
from paceline.types import SamplingParams

TEMPERATURES = (0.0, 1.0, 1.5)


def record(llm: LLM, prompts: list[BenchPrompt], max_tokens: int) -> list[Row]:
    """Rows of every prompt, which take the temperatures in turn."""
    engine = llm.engine
    assert isinstance(engine, Engine)
    assert isinstance(engine.drafter, MtpDraft)
    recorder = Recorder(engine.drafter, LONGEST)
    listening, rows = replace(engine, drafter=recorder), list[Row]()
    for i, prompt in enumerate(prompts):
        temperature, ids = TEMPERATURES[i // len(KINDS) % len(TEMPERATURES)], llm.encode(prompt.prompt)
        cut = SAMPLED if temperature else {}
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=1, **cut)
        for _ in listening.run(ids, params, 1, Writer(engine.end_ids, params, None, len(ids))):
            pass
        rows += recorder.rows(f"{prompt.id} at {temperature:g}", prompt.category, temperature)
    return rows


def with_times(rows: list[Row], table: CostTable) -> list[Row]:
    """The same rows; the first of each request holds the round times."""
    times = {k: round(ms, 4) for k, ms in enumerate(table.times(context=rows[0].context))}
    return [replace(row, round_ms=times) if row.position == 0 else row for row in rows]


def main() -> None:
    parser = common.parser(__doc__, "trace_embedded.jsonl")
    parser.set_defaults(threads=1)
    parser.add_argument("--prompts", type=int, default=27)
    parser.add_argument("--max-tokens", type=int, default=72)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of this thread, for a busy machine")
    flags = parser.parse_args()
    check_writable(flags.out)
    common.set_threads(flags.threads)
    llm = LLM.from_pretrained("embedded", device="cpu")
    llm.warm_up()
    assert isinstance(llm.engine, Engine)
    timings, step_ms = calibrate(llm.engine, clock=CLOCKS[flags.clock])
    each = flags.prompts // len(KINDS)
    kinds = [sample([p for p in load_prompts(None) if p.category == kind], each, 0) for kind in KINDS]
    rows = record(llm, [p for group in zip(*kinds, strict=True) for p in group], flags.max_tokens)
    source = (
        f"embedded pair, temperatures {', '.join(f'{t:g}' for t in TEMPERATURES)}; round times: {flags.clock} clock"
    )
    source += f", {machine()['cpu']}"
    trace = Trace(with_times(rows, CostTable(timings, step_ms=step_ms)), False, source, step_ms)
    write_trace(flags.out, trace)
    print(f'{{"rows": {len(rows)}, "bytes": {Path(flags.out).stat().st_size}}}')


if __name__ == "__main__":
    try:
        main()
    except PacelineError as error:
        raise SystemExit(f"controller_trace: {error}") from None
