"""The whole engine of the device over tiny random models, token by token against plain decoding on the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from device_models import (
    CONTEXT,
    CUT,
    FREE,
    GREEDY,
    PAIRS,
    PROMPTS,
    VOCAB,
    WIDE,
    Both,
    Recording,
    RecordingOnDevice,
    check_idle,
    host_mtp,
    make,
    quick_interpreter,
    request,
    run,
    tokens,
)
from gpu import DEVICE, HAVE_GPU

from paceline.control.auto import Auto
from paceline.control.cost import CostTable, Timing
from paceline.control.policy import Served
from paceline.device.drafters import MtpDraft
from paceline.device.engine import Ticket
from paceline.device.pilot import Pilot
from paceline.device.request import Request
from paceline.device.serve import DeviceServer
from paceline.drafters import MtpDraft as HostMtpDraft
from paceline.engine import Writer
from paceline.errors import PromptError, UsageError
from paceline.kernels.gpu.rows import rows_of
from paceline.recorder import Recorder
from paceline.types import AUTO, SamplingParams


@pytest.fixture(scope="module")
def made() -> dict[str, Both]:
    """All pairs."""
    torch.set_num_threads(1)
    with torch.no_grad():
        return {name: make(configs) for name, configs in PAIRS.items()}


@pytest.fixture
def sharing(made: dict[str, Both]) -> Both:
    """Per-layer embeddings, shared keys and values, soft cap; a drafter with centroids."""
    return made["sharing"]


@pytest.fixture
def experts(made: dict[str, Both]) -> Both:
    """Experts, full layers whose values are their keys; a drafter with a whole head."""
    return made["experts"]


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch, quiet_torch: None) -> Iterator[None]:
    with quick_interpreter(monkeypatch):
        yield


# ---- one text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prompt", "params", "k", "new"),
    [
        ("sharing", PROMPTS[0], GREEDY, 3, 3),
        ("sharing", PROMPTS[3], FREE, 2, 3),
        ("experts", PROMPTS[1], GREEDY, 2, 3),
        ("experts", PROMPTS[0], CUT, 1, 3),
    ],
)
def test_a_text_with_its_own_drafter(
    made: dict[str, Both], name: str, prompt: list[int], params: SamplingParams, k: int, new: int
) -> None:
    """The text is plain decoding's, and the guesses are the host drafter's."""
    both = made[name]
    host, device = Recording(HostMtpDraft(both.host.drafter, both.host.target)), RecordingOnDevice(both.mtp())
    expected = both.write(host, prompt, params, k, new)
    assert expected == both.plain(prompt, params, new)
    assert run(both.engine(device), request(prompt, new, k, params)) == [expected]
    assert device.drafts[: len(host.drafts)] == host.drafts


def test_the_drafter_one_position_back(sharing: Both) -> None:
    host = Recording(HostMtpDraft(sharing.host.drafter, sharing.host.target, "n-1"))
    expected = sharing.write(host, PROMPTS[0], GREEDY, 1, 2)
    device = RecordingOnDevice(MtpDraft(sharing.device.drafter, sharing.device.target, CONTEXT + 16, back=1))
    assert run(sharing.engine(device), request(PROMPTS[0], 2, 1)) == [expected]
    assert device.drafts[: len(host.drafts)] == host.drafts


def test_plain_decoding_past_the_window(sharing: Both) -> None:
    assert run(sharing.engine(None), request(PROMPTS[1], 5, 0)) == [sharing.plain(PROMPTS[1], GREEDY, 5)]


def spoiled(text: list[int], good: int) -> list[int]:
    """After every `good` right tokens a wrong one."""
    return [token if i % (good + 1) < good else (token + 7) % VOCAB for i, token in enumerate(text, 1)]


@pytest.mark.parametrize(("good", "rounds"), [(99, [1, 4, 2]), (0, [1] * 4), (2, [1, 1, 3, 2])])
def test_right_and_wrong_drafts(experts: Both, good: int, rounds: list[int]) -> None:
    """The text never changes; how many tokens a round brings is told by the drafts."""
    prompt, text = PROMPTS[0], experts.plain(PROMPTS[0], GREEDY, 14)
    each = request(prompt, sum(rounds), 3)
    assert run(experts.engine(experts.script((prompt, spoiled(text, good)))), each) == [text[: sum(rounds)]]
    assert [len(r.tokens) for r in each.rounds] == rounds
    assert [r.drafted for r in each.rounds] == [0] + [3] * (len(rounds) - 1)


def test_a_single_token(experts: Both) -> None:
    engine = experts.engine(None, places=2)
    assert run(engine, request(PROMPTS[0], 1, 0), request(PROMPTS[3], 1, 2)) == [
        experts.plain(PROMPTS[0], GREEDY, 1), experts.plain(PROMPTS[3], GREEDY, 1)
    ]  # fmt: skip


def test_suppressed_tokens_never_come(experts: Both) -> None:
    banned = tuple(experts.plain(PROMPTS[0], GREEDY, 2))
    expected = experts.plain(PROMPTS[0], GREEDY, 3, banned)
    assert not set(banned) & set(expected)
    assert run(experts.engine(None, banned=banned), request(PROMPTS[0], 3, 0)) == [expected]


# ---- how texts end --------------------------------------------------------------------------------------------------


def until(text: list[int], *ends: int) -> list[int]:
    """The text up to and with its first end token."""
    return text[: 1 + min(i for i, token in enumerate(text) if token in ends)]


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_an_end_token(experts: Both, at: int) -> None:
    """As the first token, inside the drafts that are kept, and as the bonus token."""
    prompt, text = PROMPTS[0], experts.plain(PROMPTS[0], GREEDY, 14)
    end = text[at]
    engine = experts.engine(experts.script((prompt, text)), ends=(VOCAB - 1, end))
    each = request(prompt, 10, 3)
    assert run(engine, each) == [until(text, VOCAB - 1, end)]
    assert each.finished


def test_what_a_text_is_seated_with_is_what_it_asked_for(experts: Both) -> None:
    """All numbers come in one copy, of integers: whole numbers for fractions, the greatest seed, and no min-p."""
    engine = experts.engine(experts.mtp(), places=3)
    wanted = [SamplingParams(temperature=1, top_p=1, seed=2**64 - 1, max_tokens=9), SamplingParams(
        temperature=0.7, top_k=2**40, top_p=0.9, min_p=0.25, seed=3, max_tokens=4, ignore_eos=True)]  # fmt: skip
    for params, k, prompt in zip(wanted, (2, 5), PROMPTS, strict=False):
        engine.submit(Request(prompt, params, k))
    while engine.waiting and engine._seat(engine.waiting[0]):
        engine.waiting.popleft()
    places = engine.model.places
    for told, held in zip(rows_of([*wanted, SamplingParams()], DEVICE), places.params, strict=True):
        assert torch.equal(told, held)
    lengths = [len(prompt) for prompt in PROMPTS[:2]]
    for held, expected in zip(
        (places.sequences.length, places.sequences.limit, places.sequences.stops, places.sequences.remaining),
        ([*lengths, 0], [2, 5, 0], [1, 0, 0], [8, 3, 0]), strict=True,
    ):  # fmt: skip
        assert held.tolist() == expected


def test_end_tokens_that_do_not_count(experts: Both) -> None:
    prompt, text = PROMPTS[0], experts.plain(PROMPTS[0], GREEDY, 14)
    engine = experts.engine(experts.script((prompt, text), (prompt, text)), places=2, ends=tuple(text))
    ignoring = Request(prompt, SamplingParams(max_tokens=5, ignore_eos=True), 3)
    assert run(engine, ignoring, request(prompt, 5, 3, stop_ids=False)) == [text[:5], text[:5]]


def test_what_does_not_fit_is_refused(experts: Both) -> None:
    server = DeviceServer(experts.engine(None), frozenset())
    with pytest.raises(PromptError, match=f"exceed the {CONTEXT} tokens set aside"):
        server.request(PROMPTS[0], SamplingParams(max_tokens=CONTEXT - 5), 3)
    assert server.request(PROMPTS[0], SamplingParams(max_tokens=CONTEXT - 6), 3).tokens == CONTEXT


def test_a_full_context_beside_deeper_drafts(experts: Both) -> None:
    """Rows drafted past the end of the one must not land on its first keys."""
    long, short = [(7 * i) % VOCAB for i in range(CONTEXT - 6)], PROMPTS[3]
    texts = [experts.plain(p, GREEDY, 14) for p in (long, short)]
    script = experts.script((long, []), (short, spoiled(texts[1], 0)))
    assert run(experts.engine(script, places=2), request(long, 6, 0), request(short, 4, 3)) == [
        texts[0][:6],
        texts[1][:4],
    ]


# ---- many texts -----------------------------------------------------------------------------------------------------


def test_requests_come_and_go(experts: Both) -> None:
    """Three at once, of which the first leaves first and the last takes its place; a fourth comes later."""
    jobs = [(PROMPTS[0], 2, 0, GREEDY), (PROMPTS[2], 6, 1, FREE), (PROMPTS[3], 5, 1, CUT), (PROMPTS[0], 3, 1, CUT)]
    texts = [experts.plain(prompt, params, 14) for prompt, _, _, params in jobs]
    scripts = [(job[0], spoiled(text, 2)) for job, text in zip(jobs, texts, strict=True)]
    engine = experts.engine(experts.script(*scripts[:3], scripts[0]), places=4)
    requests = [request(*job) for job in jobs]
    for each in requests[:3]:
        engine.submit(each)
    while not requests[0].finished:
        engine.step()
    assert engine.seated == {0: requests[2], 1: requests[1]}  # the highest moved down
    engine.submit(requests[3])
    engine.step()
    assert engine.seated[2] is requests[3]
    while engine.busy:
        engine.step()
    check_idle(engine)
    for each, text in zip(requests, texts, strict=True):
        assert tokens(each) == text[: each.params.max_tokens]


def test_a_wide_nucleus_beside_greedy_with_mtp_drafts(sharing: Both) -> None:
    jobs = [(PROMPTS[0], 2, 1, WIDE), (PROMPTS[3], 2, 1, GREEDY)]
    texts = run(sharing.engine(sharing.mtp(), places=2), *(request(*job) for job in jobs))
    assert texts == [sharing.plain(prompt, params, new) for prompt, new, _, params in jobs]


RULED = SamplingParams(
    repetition_penalty=1.6, presence_penalty=0.5, frequency_penalty=0.9, logit_bias={2: 1.5, 9: -100}
)
HOT = SamplingParams(temperature=1.4, min_p=0.6, seed=4, frequency_penalty=1.5)


@pytest.mark.parametrize(("name", "params"), [("sharing", RULED), ("experts", HOT)])
def test_a_text_with_rules_and_its_own_drafter(made: dict[str, Both], name: str, params: SamplingParams) -> None:
    """The guesses are the host drafter's too: it is told the rules."""
    both, prompt, new, k = made[name], PROMPTS[0], 6, 2
    host, device = Recording(HostMtpDraft(both.host.drafter, both.host.target)), RecordingOnDevice(both.mtp())
    expected = both.write(host, prompt, params, k, new)
    assert expected == both.plain(prompt, params, new)
    assert expected != both.plain(prompt, SamplingParams(temperature=params.temperature, seed=params.seed), new)
    assert run(both.engine(device), request(prompt, new, k, params)) == [expected]
    assert device.drafts[: len(host.drafts)] == host.drafts


def test_rules_touch_nobody_else_and_do_not_outlive_their_text(experts: Both) -> None:
    """Two with rules and one without, then one without rules and one with others in their places."""
    jobs = [(PROMPTS[0], 3, 1, RULED), (PROMPTS[2], 5, 1, GREEDY), (PROMPTS[3], 6, 1, HOT), (PROMPTS[0], 4, 1, CUT),
            (PROMPTS[3], 5, 1, RULED)]  # fmt: skip
    texts = [experts.plain(prompt, params, 14) for prompt, _, _, params in jobs]
    scripts = [(job[0], spoiled(text, 2)) for job, text in zip(jobs, texts, strict=True)]
    engine = experts.engine(experts.script(*scripts[:3]), places=3)
    found = run(engine, *(request(*job) for job in jobs))
    assert found == [text[: job[1]] for text, job in zip(texts, jobs, strict=True)]


def test_no_end_before_the_least_length(experts: Both) -> None:
    free = experts.plain(PROMPTS[0], GREEDY, 8)
    ends = tuple(set(free))
    params = SamplingParams(min_tokens=4)
    [early], [late] = (run(experts.engine(None, ends=ends), request(PROMPTS[0], 8, 0, p)) for p in (GREEDY, params))
    assert len(early) == 1
    assert len(late) >= 5 or set(late[4:]).isdisjoint(ends)
    assert set(late[:4]).isdisjoint(ends)


def test_one_place_for_two(experts: Both) -> None:
    jobs = [(PROMPTS[0], 2), (PROMPTS[3], 3)]
    texts = run(experts.engine(None), *(request(*job, 0) for job in jobs))
    assert texts == [experts.plain(prompt, GREEDY, new) for prompt, new in jobs]


def test_first_tokens_do_not_wait_for_each_other(experts: Both) -> None:
    """A step reads all that came before the round it launched, however many were seated at once."""
    engine, requests = experts.engine(None, places=3), [request(PROMPTS[0], 3, 0) for _ in range(3)]
    for each in requests:
        engine.submit(each)
    assert engine.step() == requests
    assert len(engine.pending) == 1
    for each in requests:
        engine.cancel(each)
    engine.step()
    check_idle(engine)


def test_cancelling(experts: Both) -> None:
    """One in the middle of its text, one that waits; the third goes on, and the freed place serves a fourth."""
    engine = experts.engine(None, places=2)
    requests = [request(prompt, 4, 0) for prompt in (PROMPTS[0], PROMPTS[2], PROMPTS[1], PROMPTS[3])]
    for each in requests[:3]:
        engine.submit(each)
    engine.step()
    engine.step()
    engine.cancel(requests[0])
    engine.cancel(requests[2])
    got = tokens(requests[0])
    assert run(engine, requests[3]) == [experts.plain(PROMPTS[3], GREEDY, 4)]
    assert tokens(requests[1]) == experts.plain(PROMPTS[2], GREEDY, 4)
    assert tokens(requests[0]) == got == experts.plain(PROMPTS[0], GREEDY, 5)[: len(got)]
    assert requests[2].finished
    assert not requests[2].rounds


def test_the_server_writes_events(experts: Both) -> None:
    text = experts.plain(PROMPTS[0], GREEDY, 14)
    server = DeviceServer(experts.engine(experts.script((PROMPTS[0], text))), frozenset())
    params = SamplingParams(max_tokens=6)
    events = list(server.run(PROMPTS[0], params, 3, Writer(frozenset(), params, None, len(PROMPTS[0]))))
    assert [event.token_id for event in events] == text[:6]
    assert [event.from_draft for event in events] == [False, True, True, True, False, False]
    while server.engine.busy:
        server.engine.step()
    check_idle(server.engine)


@pytest.mark.skipif(not HAVE_GPU, reason="without a GPU there is nothing to wait for")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("params", [GREEDY, CUT, SamplingParams(repetition_penalty=1.3)])
def test_texts_that_begin_and_end_never_wait_for_the_device(sharing: Both, params: SamplingParams) -> None:
    """Else the device would run out of rounds meanwhile. The control: a number that is copied waits."""
    engine = sharing.engine(sharing.mtp(), places=2, ends=(17,))
    try:
        for mode in ("default", "error"):  # at first kernels are compiled
            torch.cuda.set_sync_debug_mode(mode)
            for prompt in PROMPTS * 2:
                engine.submit(request(prompt, 6, 2, params))
            while engine.busy:
                engine.step()
        with pytest.raises(RuntimeError, match="synchroniz"):
            engine.model.places.sequences.remaining[0] = 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check_idle(engine)


# ---- draft lengths left open ----------------------------------------------------------------------------------------


class Watched(Pilot):
    """A pilot that keeps what it chose and what it was told."""

    def __init__(self) -> None:
        table = CostTable([Timing(1, 0, 0, 2.0), Timing(1, 8, 0, 2.4)])
        super().__init__(Auto(table, 8), offered=(0, 1, 2))
        self.chosen, self.told = list[int](), list[tuple[int, list[Served]]]()

    def choose(self, seats: Any, size: int) -> Any:
        k, plan = super().choose(seats, size)
        self.chosen.append(k)
        return k, plan

    def observe(self, plan: Any, served: Any) -> None:
        self.told.append((len(self.chosen), list(served)))
        super().observe(plan, served)


def test_open_draft_lengths_write_the_same_texts_beside_fixed_ones(sharing: Both) -> None:
    """Two that leave k open, one right and one wrong, beside one of at most one draft."""
    texts = [sharing.plain(prompt, GREEDY, 16) for prompt in PROMPTS[:3]]
    wrong = [(token + 1) % VOCAB for token in texts[1]]
    script = sharing.script((PROMPTS[0], texts[0]), (PROMPTS[1], wrong), (PROMPTS[2], texts[2]))
    engine = sharing.engine(script, places=3)
    engine.pilot = pilot = Watched()
    asked = [request(PROMPTS[0], 7, AUTO), request(PROMPTS[1], 4, AUTO), request(PROMPTS[2], 5, 1)]
    assert run(engine, *asked) == [texts[0][:7], texts[1][:4], texts[2][:5]]
    assert all(done.accepted <= 1 for done in asked[2].rounds)
    assert sum(done.accepted for done in asked[0].rounds) > 0
    assert sum(done.accepted for done in asked[1].rounds) == 0
    # A round is told of when the one after it has been chosen, and never before; only open ones are told of.
    assert [so_far for so_far, _ in pilot.told[:2]] == [2, 3]
    # The first round stands behind prompts, which its time would tell of too.
    assert {one.ms for one in pilot.told[0][1]} == {0.0}
    assert all(one.ms > 0 for _, served in pilot.told[1:] for one in served)
    assert all(len(served) <= 2 for _, served in pilot.told)


def test_a_batch_that_the_device_waits_for_thinks_rarely(sharing: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """And writes the same texts. Of a choice that was kept only times are told, of one that was late all but that."""
    texts = [sharing.plain(prompt, GREEDY, 16) for prompt in PROMPTS[:2]]
    rounds = {}
    for late in (False, True):
        monkeypatch.setattr(Ticket, "done", late)
        engine = sharing.engine(sharing.script(*zip(PROMPTS[:2], texts, strict=True)), places=2)
        engine.pilot = pilot = Watched()
        asked = [request(prompt, 12, AUTO) for prompt in PROMPTS[:2]]
        assert run(engine, *asked) == [text[:12] for text in texts]
        check_idle(engine)
        assert len(pilot.told) == len(pilot.chosen)
        untimed = [served for _, served in pilot.told if served and not served[0].ms]
        rounds[late] = len(pilot.chosen) - pilot.policy.rounds, len(untimed)
        assert len(pilot.chosen) - len([served for _, served in pilot.told if len(served) == 2]) >= rounds[late][0]
    assert rounds[False] == (0, 1)  # the first stands behind the prompts
    assert rounds[True][0] > 0
    assert rounds[True][1] > 1


class Clock:
    """Stands for a device's events, each a millisecond after the one before."""

    def __init__(self, idle: bool) -> None:
        self.idle = idle

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        return self.idle

    def elapsed_time(self, other: Clock) -> float:
        return 1.0


@pytest.mark.parametrize("idle", [False, True])
def test_what_is_timed_is_the_device_where_it_is_busy_and_the_host_always(
    sharing: Both, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    made = Ticket.__init__

    def init(self: Ticket, *args: Any) -> None:
        made(self, *args)
        self.event = Clock(idle)  # type: ignore[assignment]

    monkeypatch.setattr(Ticket, "__init__", init)
    engine, text = sharing.engine(sharing.script((PROMPTS[0], [1] * 12))), sharing.plain(PROMPTS[0], GREEDY, 12)
    engine.pilot = pilot = Watched()
    assert run(engine, request(PROMPTS[0], 12, AUTO)) == [text]
    times = [one.ms for _, served in pilot.told for one in served]
    assert times[0] == 0.0  # behind the prompt
    assert set(times[1:]) == {0.0 if idle else 1.0}
    assert pilot.policy.table.host_ms[1] > 0.0


def margins_told(both: Both, params: SamplingParams) -> list[Served]:
    """What a pilot is told of the rounds that drafted, of five tokens."""
    engine = both.engine(both.mtp())
    engine.pilot = pilot = Watched()
    assert run(engine, request(PROMPTS[0], 5, AUTO, params))[0] == both.plain(PROMPTS[0], params, 5)
    return [one for _, served in pilot.told for one in served if one.k]


def test_the_pilot_hears_how_sure_the_drafter_was(sharing: Both) -> None:
    """The margins of every draft are those of the host's own drafter at the same place of the text."""
    recorder = Recorder(host_mtp(sharing), 2)
    sharing.write(recorder, PROMPTS[0], GREEDY, 1, 8)
    known = [row.margins for row in recorder.rows("a", "", 0.0)]
    told = margins_told(sharing, GREEDY)
    assert sum(len(one.margins) for one in told) >= 3
    for one in told:
        at = one.context - len(PROMPTS[0]) - one.accepted - 2  # tokens before the one that the round began with
        assert one.margins == pytest.approx(known[at][: one.k], abs=0.06)


def test_the_pilot_hears_of_sampled_drafts_and_not_of_what_is_unknown(experts: Both) -> None:
    sampled = margins_told(experts, CUT)
    assert sampled
    assert all(len(one.margins) == one.k and min(one.margins) > 0 for one in sampled)
    assert all(one.margins == () for one in margins_told(experts, GREEDY))  # its head is one tile


def test_an_engine_without_a_pilot_refuses_open_lengths(sharing: Both) -> None:
    engine = sharing.engine(sharing.script((PROMPTS[0], [1])))
    engine.submit(request(PROMPTS[0], 4, AUTO))
    with pytest.raises(UsageError, match="needs a pilot"):
        engine.step()
