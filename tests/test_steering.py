"""The controller in the engine: who is asked when, what it is told, and that the text does not depend on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from families import PROMPT, VOCAB
from zoo import ZOO, Model, Oracle, Wrong

from paceline.control.auto import Auto
from paceline.control.cost import CostTable, Timing
from paceline.control.kinds import Kinds
from paceline.control.policy import Served, State
from paceline.control.stop import Stop
from paceline.drafters import MtpDraft, NoDrafter
from paceline.engine import Engine, Writer
from paceline.errors import UsageError
from paceline.llm import LLM
from paceline.steering import LONGEST, kind_of
from paceline.types import AUTO, ChatMessage, Completion, DraftLength, SamplingParams

pytestmark = pytest.mark.usefixtures("quiet_torch")

FORTY = SamplingParams(max_tokens=40)
CHEAP = CostTable([Timing(1, 0, 0, 2.0), Timing(1, 8, 0, 2.4)], step_ms=0.02)
DEAR = CostTable([Timing(1, 0, 0, 2.0), Timing(1, 8, 0, 40.0)], step_ms=2.0)


@pytest.fixture
def model(models: Callable[[str, int], Model]) -> Model:
    return models("e2b", 8)


def text_of(model: Model) -> list[int]:
    return model.plain(PROMPT, SamplingParams(), 60)


def write(engine: Engine, params: SamplingParams = FORTY, k: DraftLength = AUTO) -> Completion:
    writer = Writer(engine.end_ids, params, None, len(PROMPT))
    for _ in engine.run(PROMPT, params, k, writer):
        pass
    return writer.completion()


class Script:
    """Chooses the lengths it was given, and keeps what it was asked and told."""

    reason, patience = "as scripted", 1

    def __init__(self, ks: Sequence[int], stop: Stop | None = None) -> None:
        self.ks, self.stop = ks, stop
        self.log: list[State | Served] = []

    def choose(self, state: State) -> int:
        self.log.append(state)
        return self.ks[len(self.log) // 2 % len(self.ks)]

    def observe(self, served: Served) -> None:
        self.log.append(served)

    @property
    def served(self) -> list[Served]:
        return [entry for entry in self.log if isinstance(entry, Served)]


class Ticks:
    """A clock that is one second later each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


# ---- the text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("params", [FORTY, SamplingParams(max_tokens=40, temperature=1.2, seed=4)])
def test_the_text_is_that_of_plain_decoding(model: Model, name: str, params: SamplingParams) -> None:
    plain = write(Engine(model.target, NoDrafter()), params, 0)
    text = [*PROMPT, *plain.token_ids, *[1] * 16]
    policies: list[Any] = [
        Script([0, 8, 3, 1]), Script([8], Stop(0.01, 0.03)), Script([8], Stop(0.9, 0.95)),
        Kinds(Auto(CHEAP.copy(), LONGEST, listens=True)), Kinds(Auto(DEAR.copy(), LONGEST)),
    ]  # fmt: skip
    for policy in policies:
        done = write(Engine(model.target, ZOO[name](model, text), policy=policy), params)
        assert done.token_ids == plain.token_ids
        assert max(done.stats.drafted, default=0) <= done.stats.rounds


def test_a_drafter_that_is_always_wrong_is_parked_and_one_always_right_is_not(model: Model) -> None:
    clock = Ticks()  # every round takes as long, so the tables stay as they are up to a factor
    right, wrong = Oracle(text_of(model)), Wrong(text_of(model))
    policy = Kinds(Auto(DEAR.copy(), LONGEST))
    for _ in range(3):
        parked = write(Engine(model.target, wrong, policy=policy, clock=clock))
    assert sum(parked.stats.drafted) <= 3
    assert "parked: " in parked.stats.draft_choice
    policy = Kinds(Auto(CHEAP.copy(), LONGEST))
    for _ in range(3):
        drafting = write(Engine(model.target, right, policy=policy, clock=clock))
    assert drafting.stats.acceptance_length > 6


# ---- who is asked and told ------------------------------------------------------------------------------------------


def test_a_policy_is_asked_before_each_round_and_told_after_it(model: Model) -> None:
    policy = Script([3, 0, 5])
    done = write(Engine(model.target, Oracle(text_of(model)), policy=policy, clock=Ticks()))
    assert len(policy.log) == 2 * done.stats.rounds
    assert all(isinstance(entry, State if i % 2 == 0 else Served) for i, entry in enumerate(policy.log))
    assert [one.k for one in policy.served[:4]] == [3, 0, 5, 3]
    assert all(one.accepted == one.k for one in policy.served)
    assert [one.ms for one in policy.served] == [0.0] + [1000.0] * (len(policy.served) - 1)  # a prompt's cold start
    lengths = [entry.context for entry in policy.log if isinstance(entry, State)]
    assert lengths[:3] == [len(PROMPT), len(PROMPT) + 4, len(PROMPT) + 5]


def test_what_is_drafted_reaches_the_policy_only_after_its_round(model: Model) -> None:
    """Drafters that differ in the third round alone: all choices up to it are asked in the very same way."""

    class Third(Oracle):
        def propose(self, k: int) -> list[int]:
            right = super().propose(k)
            return [(token + 1) % VOCAB for token in right] if self.rounds == 3 else right

    text = text_of(model)
    logs = []
    for drafter in (Oracle(text), Third(text)):
        policy = Script([4])
        write(Engine(model.target, drafter, policy=policy, clock=Ticks()))
        logs.append(policy.log)
    assert logs[0][:5] == logs[1][:5]  # asked, told, asked, told, asked
    assert logs[0][5] != logs[1][5]


def test_a_choice_may_stand_for_several_rounds_of_which_the_last_is_told(model: Model) -> None:
    class Patient(Script):
        patience = 4

    policy = Patient([2])
    done = write(Engine(model.target, Oracle(text_of(model)), policy=policy, clock=Ticks()))
    assert len(policy.served) == done.stats.rounds // 4
    assert len(policy.log) - len(policy.served) == -(-done.stats.rounds // 4)
    assert all((one.tries, one.hits, one.ms) == (3, 3, 1000.0) for one in policy.served)
    policy = Patient([2])
    write(Engine(model.target, Wrong(text_of(model)), policy=policy, clock=Ticks()))
    assert all((one.tries, one.hits) == (3, 0) for one in policy.served)
    policy = Patient([0])
    write(Engine(model.target, Oracle(text_of(model)), policy=policy, clock=Ticks()))
    assert all((one.tries, one.hits, one.k) == (0, 0, 0) for one in policy.served)


def test_a_policy_may_ask_for_more_than_is_wanted(model: Model) -> None:
    policy = Script([8])
    write(Engine(model.target, Oracle(text_of(model)), policy=policy), SamplingParams(max_tokens=12))
    assert [one.k for one in policy.served] == [8, 1]


def test_confidences_come_from_the_drafter_that_has_them(model: Model) -> None:
    policy = Script([4], Stop(keep=0.0, go=0.0))
    write(Engine(model.target, ZOO["mtp"](model, []), policy=policy))
    assert all(len(one.confidences) == one.k and all(0 < c <= 1 for c in one.confidences) for one in policy.served)
    policy = Script([4], Stop(keep=1.1, go=1.1))  # nothing is that sure: each first step is thrown away
    done = write(Engine(model.target, ZOO["mtp"](model, []), policy=policy))
    assert sum(done.stats.drafted) == 0
    assert all(one.unmade is not None and one.confidences == () for one in policy.served[:-1])


def test_a_users_own_bound_holds_beside_the_controller(model: Model) -> None:
    drafter = ZOO["mtp"](model, [])
    assert isinstance(drafter, MtpDraft)
    drafter.min_confidence = 0.5
    done = write(Engine(model.target, drafter, policy=Script([4], Stop()), asked_confidence=0.999))
    assert sum(done.stats.drafted) == 0
    assert (drafter.min_confidence, drafter.stop) == (0.5, None)  # as it was, for requests of a fixed k
    assert sum(write(Engine(model.target, drafter, policy=Script([4], Stop()))).stats.drafted) > 0


def test_requests_have_names_of_their_own_and_kinds_in_common(model: Model) -> None:
    policy = Script([1])
    engine = Engine(model.target, Oracle(text_of(model)), policy=policy)
    for params in (FORTY, FORTY, SamplingParams(max_tokens=40, temperature=0.5)):
        write(engine, params)
    states = [entry for entry in policy.log if isinstance(entry, State)]
    assert len({s.request for s in states}) == 3
    assert list(dict.fromkeys(s.kind for s in states)) == ["0", "0.5"]


def test_kinds_tell_what_costs_differently_apart() -> None:
    many = [FORTY, SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_k=9),
            SamplingParams(presence_penalty=1.0)]  # fmt: skip
    assert len({kind_of(params) for params in many}) == 4
    assert kind_of(FORTY) == kind_of(SamplingParams(seed=9, top_k=5))  # greedy looks at no cut


def test_auto_needs_a_policy(model: Model) -> None:
    with pytest.raises(UsageError, match="needs a policy"):
        write(Engine(model.target, NoDrafter()))


# ---- the embedded pair ----------------------------------------------------------------------------------------------

CHAT: list[ChatMessage] = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def embedded() -> LLM:
    return LLM.from_pretrained("embedded", device="cpu")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_auto_is_the_default_and_writes_the_same_text(embedded: LLM, temperature: float) -> None:
    params = SamplingParams(max_tokens=64, temperature=temperature, ignore_eos=True, seed=2)
    auto, plain = (embedded.generate([CHAT], params, k)[0] for k in (None, 0))
    assert auto.token_ids == plain.token_ids
    assert auto.stats.draft_choice.startswith("auto: ")
    assert plain.stats.draft_choice == "no drafts, as asked for"
    assert embedded.generate([CHAT], params, 2)[0].stats.draft_choice == "k = 2, as asked for"


def test_one_controller_lives_across_requests(embedded: LLM) -> None:
    embedded.generate([CHAT, CHAT], SamplingParams(max_tokens=24))
    engine = embedded.engine
    assert isinstance(engine, Engine)
    first = engine.policy
    assert isinstance(first, Kinds)
    rounds = first.now.rounds
    embedded.generate([CHAT], SamplingParams(max_tokens=24))
    assert engine.policy is first
    assert first.now.rounds > rounds


def test_without_a_drafter_auto_decodes_plainly() -> None:
    llm = LLM.from_pretrained("embedded", None, device="cpu")
    done = llm.generate([CHAT], SamplingParams(max_tokens=8), AUTO)[0]
    assert (done.stats.drafted, done.stats.draft_choice) == ([], "no drafts, as asked for")
    assert {d.what: d.value for d in llm.resolved.decisions}["k"] == "0"
