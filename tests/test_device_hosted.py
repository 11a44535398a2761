"""Texts on the device whose tokens the host chooses, token by token against the CPU's engine on the same weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from device_models import (
    CUT,
    END,
    FREE,
    GREEDY,
    PAIRS,
    PROMPTS,
    VOCAB,
    Both,
    Known,
    check_idle,
    make,
    on_the_cpu,
    quick_interpreter,
    request,
    run,
    tokens,
)
from tokenizers import Tokenizer, decoders, models

from paceline.control.auto import Auto
from paceline.control.cost import CostTable, Timing
from paceline.control.kinds import Kinds
from paceline.device import request as requests_module
from paceline.device.cache import BatchCache, Where
from paceline.device.engine import DeviceEngine
from paceline.device.graphs import Graphs
from paceline.device.pilot import Pilot
from paceline.device.request import Request
from paceline.device.serve import DeviceServer
from paceline.drafters import Drafter, NoDrafter
from paceline.drafters import MtpDraft as HostMtpDraft
from paceline.engine import Writer
from paceline.errors import UsageError
from paceline.structure import Constraint, Ids, Structure, packed
from paceline.types import AUTO, SamplingParams

PROMPT = PROMPTS[0]


@pytest.fixture(scope="module")
def sharing() -> Both:
    """Per-layer embeddings, shared keys and values, soft cap; a drafter with centroids."""
    return make(PAIRS["sharing"])


@pytest.fixture(scope="module")
def experts() -> Both:
    """Experts, full layers whose values are their keys; a drafter with a whole head."""
    return make(PAIRS["experts"])


@pytest.fixture
def made(sharing: Both, experts: Both) -> dict[str, Both]:
    return {"sharing": sharing, "experts": experts}


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch, quiet_torch: None) -> Iterator[None]:
    with quick_interpreter(monkeypatch):
        yield


def wrong(i: int, token: int) -> int:
    return (token + 7) % VOCAB


def wrong_at_times(i: int, token: int) -> int:
    return token if i % 3 else wrong(i, token)


def told(engine: DeviceEngine, drafter: Drafter) -> DeviceEngine:
    """The engine, with another drafter for texts whose tokens the host chooses."""
    engine.host.drafter = lambda: drafter  # type: ignore[method-assign]
    return engine


# ---- who chooses ----------------------------------------------------------------------------------------------------


def test_only_what_needs_the_host_comes_to_it() -> None:
    graphs = [GREEDY, CUT, replace(GREEDY, accept="block"), replace(CUT, logprobs=0),
              replace(GREEDY, logit_bias=dict.fromkeys(range(300), 1.0))]  # fmt: skip
    host = [replace(FREE, accept="block"), replace(GREEDY, logprobs=1), replace(GREEDY, accept="block", logprobs=1),
            replace(GREEDY, logit_bias=dict.fromkeys(range(301), 1.0))]  # fmt: skip
    assert not any(Request(PROMPT, params, 2).hosted for params in graphs)
    assert all(Request(PROMPT, params, 2).hosted for params in host)
    assert Request(PROMPT, GREEDY, 2, constraint=Turns()).hosted


def test_more_biases_than_a_graph_takes(experts: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "MOST_BIASES", 1)
    params = replace(GREEDY, logit_bias={33: -100.0, 19: -3.0}, repetition_penalty=1.4, max_tokens=5)
    expected = on_the_cpu(experts, params, 0).token_ids
    assert expected != experts.plain(PROMPT, GREEDY, 5)
    engine = told(experts.engine(None), Known(expected, wrong_at_times))
    assert run(engine, request(PROMPT, 5, 3, params)) == [expected]


# ---- drafts that are drawn and tested -------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["rejection", "block"])
@pytest.mark.parametrize("name", ["sharing", "experts"])
def test_drawn_drafts(made: dict[str, Both], name: str, accept: Any) -> None:
    """The CPU engine's very text: the same laws, drawn from with the same noise."""
    both, params = made[name], replace(FREE, accept=accept, max_tokens=6)
    expected = on_the_cpu(both, params, 3)
    each = request(PROMPT, 6, 3, params)
    assert run(both.engine(both.mtp(), ends=(END,)), each) == [expected.token_ids]
    assert [r.drafted for r in each.rounds] != [0] * len(each.rounds)
    assert expected.token_ids != both.plain(PROMPT, FREE, 6)  # or it would not have been tested, but coupled


def test_a_drafter_that_hides_what_it_drew_is_refused(experts: Both) -> None:
    """It would bend the law. Its text fails, and nobody else's."""

    class Hiding(HostMtpDraft):
        def propose(self, k: int) -> list[int]:
            return super().propose(k)[1:]

    engine = experts.engine(experts.mtp(), places=2)
    honest = engine.host.drafter()
    assert isinstance(honest, HostMtpDraft)
    told(engine, Hiding(honest.model, honest.target))
    failing, other = request(PROMPT, 6, 2, replace(FREE, accept="block")), request(PROMPT, 3, 0)
    assert run(engine, failing, other)[1] == experts.plain(PROMPT, GREEDY, 3)
    assert isinstance(failing.failure, UsageError)
    assert "needs every draft that the drafter drew" in str(failing.failure)
    assert other.failure is None


# ---- grammars -------------------------------------------------------------------------------------------------------


class Turns(Constraint):
    """Ids whose remainder by 3 goes round 0, 1, 2, and END from the `least`-th token on: a grammar of no library."""

    def __init__(self, least: int = 99) -> None:
        super().__init__(None, "turns", Ids(VOCAB, frozenset([END])))
        self.least, self.at = least, 0

    def allowed(self, draft: Sequence[int] = ()) -> Any:
        at = self.at + len(draft)
        mask = np.arange(VOCAB) % 3 == at % 3
        mask[END] = at >= self.least
        return packed(mask)

    def extend(self, tokens: Sequence[int]) -> None:
        self.at += len(tokens)


class Overlooking(Turns):
    """Negative control: every row gets the mask of the emitted tokens only."""

    def allowed(self, draft: Sequence[int] = ()) -> Any:
        return super().allowed()


@pytest.mark.parametrize("params", [GREEDY, FREE])
def test_masks_hold_after_the_drafts_before_them(experts: Both, params: SamplingParams) -> None:
    """With drafts that are right, wrong, and forbidden; a mask that overlooks them is caught."""
    params = replace(params, max_tokens=5)
    plain = on_the_cpu(experts, params, 0, limits=Turns()).token_ids
    assert [token % 3 for token in plain] == [0, 1, 2, 0, 1]

    def written(drafter: Drafter, limits: Constraint, k: int) -> list[int]:
        engine = told(experts.engine(None, ends=(END,)), drafter)
        return run(engine, request(PROMPT, 5, k, params, constraint=limits))[0]

    assert written(NoDrafter(), Turns(), 0) == plain
    for change in (wrong, wrong_at_times, lambda i, token: (token + 3) % 60 if i % 2 else token):
        assert written(Known(plain, change), Turns(), 3) == plain
    assert written(Known(plain), Overlooking(), 3) != plain


def test_a_grammar_ends_the_text(experts: Both) -> None:
    params = replace(FREE, temperature=30.0, max_tokens=30)
    expected = on_the_cpu(experts, params, 0, limits=Turns(2)).token_ids
    assert expected[-1] == END
    engine = told(experts.engine(None, ends=(END,)), Known(expected + [5] * 9))
    each = request(PROMPT, 30, 3, params, constraint=Turns(2))
    assert run(engine, each) == [expected]
    assert each.finished


REGEX = "(ab|ba){1,2}[xyz]{1,3}"


@pytest.fixture(scope="module")
def structure() -> Structure:
    """Letters, pieces of several, and END, as tokens."""
    words = [chr(c) for c in range(97, 123)] + ["ab", "ba", "aba", "bax", "xy", "yz"]
    vocab = {word: i for i, word in enumerate(words)}
    vocab |= {f"<unused{i}>": i for i in range(len(words), END)} | {"<end>": END}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([word for word in vocab if word.startswith("<")])
    return Structure(tokenizer, Ids(VOCAB, frozenset([END])))


def test_a_regular_expression(sharing: Both, structure: Structure) -> None:
    """With the text's own drafter, through the server; the same for every k, and what was asked for."""
    pytest.importorskip("llguidance")
    params, texts = replace(FREE, max_tokens=12, regex=REGEX), []
    for k in (0, 3):
        server = DeviceServer(sharing.engine(sharing.mtp(), ends=(END,)), frozenset([END]), structure)
        writer = Writer(server.end_ids, params, None, len(PROMPT))
        texts.append([event.token_id for event in server.run(PROMPT, params, k, writer)])
        assert writer.finish_reason == "stop"
        check_idle(server.engine)
    assert structure.tokenizer is not None
    assert texts[0] == texts[1]
    assert re.fullmatch(REGEX, "".join(structure.tokenizer.id_to_token(i) for i in texts[0][:-1]))
    assert texts[0] == on_the_cpu(sharing, params, 0, limits=structure.constraint(params)).token_ids


def test_a_grammar_that_leaves_nothing_fails_alone(experts: Both) -> None:
    """Through the server, where the text's own caller hears of it."""

    class Nothing(Turns):
        def allowed(self, draft: Sequence[int] = ()) -> Any:
            if self.at + len(draft) > 1:
                raise UsageError("turns leaves no token to go on with")
            return super().allowed(draft)

    server = DeviceServer(experts.engine(None, places=2), frozenset())
    server.structure = SimpleNamespace(constraint=lambda p: Nothing() if p.regex else None)  # type: ignore[assignment]
    plain, doomed = SamplingParams(max_tokens=4), SamplingParams(max_tokens=6, regex="x")
    good = server.run(PROMPT, plain, 0, Writer(frozenset(), plain, None, len(PROMPT)))
    first = next(good).token_id
    bad = server.run(PROMPT, doomed, 0, Writer(frozenset(), doomed, None, len(PROMPT)))
    assert [next(bad).token_id % 3 for _ in range(2)] == [0, 1]
    text = [first, *(event.token_id for event in good)]  # steps of this text are the other's too
    assert text == experts.plain(PROMPT, GREEDY, 4)
    with pytest.raises(UsageError, match="leaves no token"):
        next(bad)
    writers = [Writer(frozenset(), doomed, None, len(PROMPT)) for _ in range(2)]
    with pytest.raises(UsageError, match="leaves no token"):
        server.run_all([(server.request(PROMPT, doomed, 0), writer) for writer in writers])
    server.engine.step()
    check_idle(server.engine)


# ---- beside the batch -----------------------------------------------------------------------------------------------


def crowd(experts: Both) -> tuple[list[Request], list[list[int]], DeviceEngine]:
    """Three texts of the batch, whose rounds run over all four places, and one of the host's."""
    jobs = [(PROMPTS[0], 3, 1, GREEDY), (PROMPTS[2], 6, 1, FREE), (PROMPTS[3], 5, 1, CUT)]
    texts = [experts.plain(prompt, params, new) for prompt, new, _, params in jobs]
    script = experts.script(*((job[0], [*text, 1]) for job, text in zip(jobs, texts, strict=True)), ([], []))
    asked = [request(*job) for job in jobs] + [request(PROMPTS[1], 6, 0, replace(CUT, logprobs=1))]
    return asked, [*texts, experts.plain(PROMPTS[1], CUT, 6)], experts.engine(script, places=4)


def test_texts_of_the_host_beside_the_batch(experts: Both) -> None:
    asked, texts, engine = crowd(experts)
    assert run(engine, *asked) == texts
    assert all(each.logprobs == [] for each in asked[:3])
    assert len(asked[3].logprobs) == 6


def test_a_place_that_is_not_lent_is_overwritten(experts: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the batch's rounds reach the place of a text that is not theirs."""

    def lend(self: BatchCache, place: int, tokens: int) -> Where:
        self.reserve(place, tokens)
        return self.where(place)

    asked, texts, engine = crowd(experts)
    monkeypatch.setattr(BatchCache, "lend", lend)
    assert run(engine, *asked)[3] != texts[3]


def test_coming_going_and_waiting(experts: Both) -> None:
    """Two places for four: one leaves in the middle of its text, one before it began, and all is given back."""
    engine = experts.engine(None, places=2)
    asked = [request(PROMPT, 4, 0, replace(GREEDY, logprobs=1)) for _ in range(4)]
    for each in asked:
        engine.submit(each)
    engine.step()
    engine.step()
    assert engine.busy
    assert [each.emitted for each in asked] == [2, 2, 0, 0]
    engine.cancel(asked[0])
    engine.cancel(asked[2])
    while engine.busy:
        engine.step()
    check_idle(engine)
    text = experts.plain(PROMPT, GREEDY, 4)
    assert [tokens(each) for each in asked] == [text[:2], text, [], text]


def test_a_closed_stream_gives_its_place_back(experts: Both) -> None:
    server = DeviceServer(experts.engine(None), frozenset())
    params = SamplingParams(max_tokens=6, logprobs=1)
    writer = Writer(frozenset(), params, None, len(PROMPT))
    stream = server.run(PROMPT, params, 0, writer)
    event = next(stream)
    assert event.logprobs is not None
    assert event.logprobs == writer.logprobs[0]
    assert server.engine.model.cache.held
    stream.close()
    check_idle(server.engine)


class Replayed:
    """A graph as far as its callers see: replays a call on the tensors that it knew, into tensors of its own.

    What other graphs left behind is spoiled by every replay: they share their memory.
    """

    made: ClassVar[list[Replayed]] = []

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.fresh, self.out = call, True, call()
        self.made.append(self)

    @property
    def tensors(self) -> list[torch.Tensor]:
        outs = self.out if isinstance(self.out, tuple) else (self.out,)
        return [out for out in outs if out is not None]

    def replay(self) -> None:
        for other in self.made:
            if other is not self:
                for tensor in other.tensors:
                    tensor.fill_(torch.nan if tensor.is_floating_point() else VOCAB - 1)
        if self.fresh:  # a capture only records, but here it has run
            self.fresh = False
            return
        before, self.out = self.tensors, self.call()
        for old, new in zip(before, self.tensors, strict=True):
            old.copy_(new)
        self.out = tuple(before) if isinstance(self.out, tuple) else before[0] if before else None


def test_captured_passes_serve_texts_in_turn(experts: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs know addresses and no text; what they leave lies in memory that they share."""

    def capture(self: Graphs, call: Callable[[], Any]) -> tuple[Any, Any]:
        graph = Replayed(call)
        return graph, graph.out

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(Graphs, "_capture", capture)
    monkeypatch.setattr(Replayed, "made", [])
    model = experts.engine(experts.mtp(), places=3, ends=(END,)).model
    drawn, told = replace(FREE, accept="rejection"), replace(CUT, logprobs=1)
    asked = [request(PROMPT, 6, 2, drawn), request(PROMPT, 3, 1, told), request(PROMPT, 3, 1, GREEDY)]
    assert run(DeviceEngine(model), *asked) == [
        on_the_cpu(experts, replace(drawn, max_tokens=6), 2).token_ids, experts.plain(PROMPT, CUT, 3),
        experts.plain(PROMPT, GREEDY, 3)
    ]  # fmt: skip
    assert len(Replayed.made) >= 5  # a prompt's chunk, passes, a draft step, a round


# ---- open draft lengths ---------------------------------------------------------------------------------------------


def test_open_draft_lengths(sharing: Both) -> None:
    """A policy of their own chooses, and says so; without one, k='auto' is refused."""
    table = CostTable([Timing(1, 0, 0, 2.0), Timing(1, 8, 0, 2.1)])
    engine = sharing.engine(sharing.mtp(), ends=(END,))
    engine.pilot = Pilot(Auto(table, 8), alone=Kinds(Auto(table.copy(), 8, listens=True)))
    engine.host.policy = engine.pilot.alone
    server, params = DeviceServer(engine, frozenset([END])), replace(CUT, logprobs=1, max_tokens=5)
    writer = Writer(server.end_ids, params, None, len(PROMPT))
    text = [event.token_id for event in server.run(PROMPT, params, AUTO, writer)]
    assert text == sharing.plain(PROMPT, CUT, 5)
    assert sum(writer.stats.drafted) > 0
    assert re.match(r"auto: \d\.\d drafts a round, .*; last: ", writer.stats.draft_choice)
    engine.host.policy = None
    with pytest.raises(UsageError, match="k='auto' needs a pilot"):
        list(server.run(PROMPT, params, AUTO, Writer(server.end_ids, params, None, len(PROMPT))))
