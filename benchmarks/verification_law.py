"""How exactly rejection and block verification give the target's law, in toy worlds: about three minutes on one core.

Exact: every case added up, the greatest difference from plain sampling's law. Drawn: G-tests with the engine's noise.
Both with the negative controls that they must catch. No model and no weights are involved.

    python benchmarks/verification_law.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import common
import numpy as np

from paceline import verification as v

sys.path.insert(0, str(common.REPOSITORY / "tests"))  # the toy worlds are the tests' own
import law_cases
import worlds
from test_verification_exact import CONTROLLERS, random_case


def added_up(cases: int) -> dict[str, Any]:
    """The greatest error of each mode over random cases, drafts kept, and what the controls miss by."""
    errors = dict.fromkeys(v.ACCEPT_MODES, 0.0)
    kept: dict[str, list[float]] = {mode: [] for mode in v.ACCEPT_MODES}
    for case in range(cases):
        world, play = random_case(case)
        for mode in v.ACCEPT_MODES:
            law, mean = worlds.exact(world, worlds.replace(play, mode=mode), 2)
            errors[mode] = max(errors[mode], float(np.abs(law - world.plain(2)).max()))
            kept[mode].append(mean)
    missed = {n: worlds.distance(c.world, c.play, 2, c.target) for n, c in worlds.controls().items()}
    return {"cases": cases, "worst_error": errors, "largest": largest(), "kept": kept, "controls_error": missed}


def largest() -> dict[str, float]:
    """Errors for 6 tokens, 3 drafts a round and texts of 3, for each mode."""
    world = worlds.World.make(1, 6, 5)
    return {
        mode: max(worlds.distance(world, worlds.Play(mode, 3, more, greedy), 3)
                  for more in CONTROLLERS.values() for greedy in (False, True))
        for mode in v.ACCEPT_MODES
    }  # fmt: skip


def drawn(options: Any) -> dict[str, Any]:
    """p-values of the honest cases and of the controls."""
    uniform = {mode: law_cases.uniformity(mode, options.cases, options.draws // 50) for mode in v.ACCEPT_MODES}
    return {
        "joint": law_cases.joint(options.draws),
        "uniformity": {mode: {"ks_p": ks, "p_values": found} for mode, (ks, found) in uniform.items()},
        "controls": law_cases.caught(options.draws // 10),
    }


def summary(record: dict[str, Any]) -> dict[str, Any]:
    exact, found = record["exact"], record["drawn"]
    return {
        "exact_worst_error": max(*exact["worst_error"].values(), *exact["largest"].values()),
        "exact_controls_least_error": min(exact["controls_error"].values()),
        "mean_drafts_kept": {mode: float(np.mean(kept)) for mode, kept in exact["kept"].items()},
        "joint_least_p_holm": law_cases.holm(list(found["joint"].values())),
        "uniformity_ks_p": {mode: part["ks_p"] for mode, part in found["uniformity"].items()},
        "controls_greatest_p": max(found["controls"].values()),
        "seconds": record["seconds"],
    }


def main() -> None:
    parser = common.parser(__doc__, "verification_law.json")
    parser.add_argument("--draws", type=int, default=1_000_000, help="texts of each joint law; other parts scale")
    parser.add_argument("--cases", type=int, default=200, help="random cases")
    options = parser.parse_args()
    common.set_threads(options.threads)
    told = {
        "draws": options.draws, "uniformity_draws": options.draws // 50, "controls_draws": options.draws // 10,
        "noise_controls_draws": options.draws, "cases": options.cases, "chunk": law_cases.CHUNK,
        "seeds": "worlds: law_cases.joint 100.., uniformity 1000.., controls 11, random_case 0..; "
                 "texts: case number << 32 onwards; controls 0 onwards",
    }  # fmt: skip
    record = common.head("paceline-verification-law/1", ["CPU", "toy vocabularies", "no model"], told)
    record["provenance"]["versions"]["scipy"] = common.metadata.version("scipy")
    start = time.perf_counter()
    record["exact"] = added_up(options.cases)
    record["drawn"] = drawn(options)
    record["seconds"] = round(time.perf_counter() - start, 1)
    record["summary"] = summary(record)
    common.show("verification", ("what", "found"), [(key, str(value)) for key, value in record["summary"].items()])
    common.write(options.out, record)


if __name__ == "__main__":
    main()
