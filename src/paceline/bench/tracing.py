"""`paceline bench --trace`: a run's texts once more, and what drafts of full length would have come to at every token.

Recorded behind the run, whose timings it would disturb: every text is decoded plainly while the drafter guesses along.
Any policy can then be replayed on the same texts (`paceline simulate`). The first row of each text holds the times of
rounds, which are measured beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paceline.bench import record as files
from paceline.bench.adapters.local import LocalArm
from paceline.bench.harness import Contest
from paceline.bench.plan import BenchOptions, derive_seed
from paceline.bench.prompts import BenchPrompt
from paceline.calibration import calibrate
from paceline.control.cost import CostTable
from paceline.control.trace import Row, Trace, write_trace
from paceline.drafters import MtpDraft
from paceline.engine import Engine, Writer
from paceline.errors import UsageError
from paceline.llm import LLM
from paceline.recorder import Recorder
from paceline.steering import LONGEST


class Tracer:
    """Records the texts of an engine in this process. Refuses what cannot be traced, or not be written, when made."""

    def __init__(self, contest: Contest, path: Path) -> None:
        llm = contest.off.engine if isinstance(contest.off, LocalArm) else None
        if not isinstance(llm, LLM):
            raise UsageError(
                "--trace records how sure the drafter is of each guess, which other engines do not tell; leave out"
                " --trace, or --engine, --on and --off"
            )
        if not isinstance(llm.engine, Engine) or not isinstance(llm.engine.drafter, MtpDraft):
            raise UsageError("--trace needs an MTP drafter on the CPU; name one with --drafter, and --device cpu")
        files.check_writable(path)
        self.llm, self.engine, self.path = llm, llm.engine, path
        self.recorder = Recorder(llm.engine.drafter, LONGEST)

    def write(self, prompts: Sequence[BenchPrompt], options: BenchOptions) -> None:
        """Records every prompt at every temperature, as its first repeat was asked for, and writes the trace."""
        rows = [row for prompt in prompts for t in options.temperatures for row in self._rows(prompt, t, options)]
        if not rows:
            raise UsageError(f"every text ended within {LONGEST} tokens, too soon for a trace; raise --max-tokens")
        timings, step_ms = calibrate(self.engine)
        times = CostTable(timings, step_ms=step_ms).times(context=rows[0].context)
        timed = {k: round(ms, 4) for k, ms in enumerate(times)}
        source = f"{self.llm.resolved.target.name}, temperatures {', '.join(f'{t:g}' for t in options.temperatures)}"
        source += f"; {files.machine()['cpu']}"
        write_trace(self.path, Trace([replace(row, round_ms=timed) if row.position == 0 else row for row in rows],
                                     False, source, step_ms))  # fmt: skip

    def _rows(self, prompt: BenchPrompt, temperature: float, options: BenchOptions) -> list[Row]:
        ids = self.llm.encode(prompt.prompt)
        params = options.params(temperature, derive_seed(options.seed, prompt.id, 0))
        writer = Writer(self.engine.end_ids, params, None, len(ids))
        for _ in replace(self.engine, drafter=self.recorder).run(ids, params, 1, writer):
            pass
        return self.recorder.rows(f"{prompt.id} at {temperature:g}", prompt.category, temperature)
