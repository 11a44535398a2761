"""`paceline bench --shape`: rounds of the published sizes with random weights, timed on a GPU.

Nothing here says anything about text. Acceptance is synthetic, a stated probability for each draft position; every
record and table carries both labels.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from paceline import acceptance, roofline
from paceline.bench.rounds import RoundTimer, Setting, marks
from paceline.bench.shape_options import ROOM_AFTER, ShapeOptions, record_head
from paceline.device.build import random_model
from paceline.device.engine import DeviceEngine
from paceline.device.memory import Need, choose_room
from paceline.device.request import Request
from paceline.kernels.gpu import moe_plan
from paceline.shapes import drafter_config, target_config
from paceline.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator


class ShapeBench:
    """One size on the device, and what is measured of it."""

    def __init__(self, options: ShapeOptions) -> None:
        self.options = options
        self.config, self.drafter = target_config(options.shape), drafter_config(options.shape)
        begin = time.perf_counter()
        room = choose_room(self._need(), torch.cuda.mem_get_info()[0])
        model = random_model(self.config, self.drafter, room, (0.0,) * 15, options.int8)
        skew_routers(model.target, options.skew)
        torch.cuda.synchronize()
        self.built_s = time.perf_counter() - begin
        self.engine = DeviceEngine(model)
        self.timer = RoundTimer(self.engine)
        self.bandwidth = copy_bandwidth()

    def _need(self) -> Need:
        """What the largest setting takes on the device."""
        o = self.options
        weights = 2 * (roofline.parameters(self.config).total + roofline.drafter_parameters(self.drafter))
        return Need(
            config=self.config, weights=weights - round(sum(roofline.int8_saved(self.drafter, o.int8))),
            places=max(o.batches), context=max(o.contexts) + ROOM_AFTER,
        )  # fmt: skip

    def settings(self) -> list[Setting]:
        """All combinations, smallest batch first."""
        o = self.options
        return [Setting(b, k, c) for c, b, k in itertools.product(o.contexts, o.batches, o.ks)]

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Times of a round, the bytes it had to move, and tokens per second with the stated acceptance."""
        self.accept_nothing()
        begin = time.perf_counter()
        times = self.timer.times_ms(setting, self.options.repeats)
        ready = time.perf_counter() - begin
        distinct = self.distinct_experts(setting)
        need = roofline.traffic(self.config, self.drafter, roofline.Round(
            batch=setting.batch, k=setting.k, context=setting.context, distinct_experts=distinct,
            int8=self.options.int8))  # fmt: skip
        median = statistics.median(times)
        row = {
            **asdict(setting), "ms": median, "times_ms": [round(t, 4) for t in times], "ready_s": ready,
            "bytes": need.total, "bound_ms": need.seconds(self.bandwidth) * 1e3, "distinct_experts": distinct,
            "share_of_bandwidth": need.total / (median * 1e-3) / self.bandwidth,
            "expected_tokens": acceptance.expected_tokens(self.options.profile, setting.k),
        }  # fmt: skip
        if self.options.tokens:
            row |= self.throughput(setting)
        if self.options.kernels:
            row["kernels"] = self.timer.profile(setting)
        return row

    def throughput(self, setting: Setting) -> dict[str, Any]:
        """Tokens per second of the served engine, host included, from the first token of each text to the last."""
        self.accept_by_chance()
        self.clear()
        generator = torch.Generator().manual_seed(0)
        params = SamplingParams(max_tokens=self.options.tokens, ignore_eos=True)
        vocab = self.config.vocab
        prompts = [torch.randint(0, vocab, (setting.context,), generator=generator).tolist()
                   for _ in range(setting.batch)]  # fmt: skip
        requests = [Request(prompt, params, setting.k, False) for prompt in prompts]
        for request in requests:
            self.engine.submit(request)
        while not all(request.rounds for request in requests):
            self.engine.step()
        torch.cuda.synchronize()
        before, begin = sum(r.emitted for r in requests), time.perf_counter()
        while self.engine.busy and not any(r.finished for r in requests):
            self.engine.step()
        seconds = time.perf_counter() - begin
        tokens = sum(r.emitted for r in requests) - before
        rounds = [done for r in requests for done in list(r.rounds)[1:]]
        while self.engine.busy:
            self.engine.step()
        return {"tokens_per_s": tokens / seconds, "tokens_per_round": statistics.mean(len(d.tokens) for d in rounds)}

    def distinct_experts(self, setting: Setting) -> float | None:
        """Mean over layers of the distinct experts that one round of these rows really meets."""
        if self.config.experts is None:
            return None
        seen: list[int] = []
        self.timer.seat(setting)
        with watch_routes(lambda ids: seen.append(int(torch.unique(ids).numel()))):
            self.engine.model.round(self.timer.shape(setting))
        return statistics.mean(seen)

    def accept_nothing(self) -> None:
        """Every draft is refused: contexts grow by one token a round, which timing likes."""
        survival = self.engine.model.ending.survival
        assert survival is not None
        survival.zero_()

    def accept_by_chance(self) -> None:
        """Drafts are kept with the stated probabilities."""
        survival = self.engine.model.ending.survival
        assert survival is not None
        survival.copy_(torch.tensor(acceptance.survival(self.options.profile), dtype=torch.float32))

    def clear(self) -> None:
        """Frees the places that rounds were timed on."""
        self.engine.model.places.sequences.remaining.zero_()
        for place in list(self.engine.model.cache.held):
            self.engine.model.cache.release(place)


def skew_routers(target: Any, skew: float) -> None:
    """Makes some experts likelier than others: their scores spread by factors from 1 - skew to 1 + skew."""
    for layer in target.layers:
        if layer.mixture is not None and skew:
            weight = layer.mixture.router.tensor
            factors = torch.linspace(1 - skew, 1 + skew, len(weight), device=weight.device)
            weight.mul_(factors[:, None].to(weight.dtype))


@contextmanager
def watch_routes(seen: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Shows every layer's expert ids to `seen` while rounds run without graphs."""
    real = moe_plan.route_and_plan

    def watched(parts: torch.Tensor, active: int, expert_scale: torch.Tensor) -> Any:
        found = real(parts, active, expert_scale)
        seen(found[0])
        return found

    moe_plan.route_and_plan = watched
    try:
        yield
    finally:
        moe_plan.route_and_plan = real


def copy_bandwidth(size: int = 1 << 31) -> float:
    """Bytes per second of a device-to-device copy, read and written bytes counted: the ceiling of these times."""
    source = torch.randn(size // 4, device="cuda")
    target, times = torch.empty_like(source), []
    for _ in range(12):
        start, end = marks(2)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return 2 * size / float(statistics.median(times[2:]))


def run_shape(options: ShapeOptions, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The record of one size; `show` gets each row as it comes."""
    head = record_head(options)
    bench = ShapeBench(options)
    rows = []
    for setting in bench.settings():
        rows.append(bench.measure(setting))
        show(rows[-1])
    return {
        **head, "complete": True, "copy_bandwidth": bench.bandwidth, "built_s": bench.built_s,
        "graph_bytes": bench.engine.graphs.bytes, "cache_bytes": bench.engine.model.cache.nbytes, "rows": rows,
    }  # fmt: skip
