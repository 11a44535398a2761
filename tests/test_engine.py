"""What a request gets: texts end where plain decoding would end them, and the statistics say what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from families import PROMPT, VOCAB
from zoo import ZOO, Model, Oracle, RightThenWrong, Scripted

from paceline.cache import Storage
from paceline.drafters import NoDrafter
from paceline.engine import Engine, Writer
from paceline.errors import PromptError, UsageError
from paceline.hub import EMBEDDED_PAIR
from paceline.llm import LLM
from paceline.types import ChatMessage, Completion, SamplingParams, TokenEvent

pytestmark = pytest.mark.usefixtures("quiet_torch")

FAMILY, WINDOW, K = "e2b", 8, 5
LONG = SamplingParams(max_tokens=40)


class Letters:
    """A detokenizer: one letter for each token, which a run of its own kind holds back by one token, as bytes are."""

    def __init__(self, late: bool = False) -> None:
        self.late, self.held = late, ""

    def push(self, token_id: int) -> str:
        text = self.held + chr(ord("a") + token_id % 26)
        self.held = text[-1] if self.late else ""
        return text[:-1] if self.late else text

    def flush(self) -> str:
        text, self.held = self.held, ""
        return text


def letters(ids: list[int]) -> str:
    return "".join(map(Letters().push, ids))


@pytest.fixture
def model(models: Callable[[str, int], Model]) -> Model:
    return models(FAMILY, WINDOW)


def text_of(model: Model) -> list[int]:
    """What plain decoding writes, far past any limit used here; prompt included."""
    return model.plain(PROMPT, SamplingParams(), 60)


def run(
    engine: Engine, params: SamplingParams, k: int, prompt: list[int] = PROMPT, late: bool = False
) -> tuple[Completion, list[TokenEvent]]:
    writer = Writer(engine.end_ids, params, Letters(late), len(prompt))  # type: ignore[arg-type]
    events = list(engine.run(prompt, params, k, writer))
    return writer.completion(), events


def check_same_end(model: Model, params: SamplingParams, ends: frozenset[int] = frozenset()) -> Completion:
    """Runs plainly and with every drafter of the zoo; text, ids and reason must be the plain ones'."""
    text = text_of(model)
    for late in (False, True):
        plain, _ = run(Engine(model.target, NoDrafter(), ends), params, 0, late=late)
        for name, make in ZOO.items():
            for k in (3, 15):
                done, events = run(Engine(model.target, make(model, text), ends), params, k, late=late)
                wanted = (plain.token_ids, plain.text, plain.finish_reason)
                assert (done.token_ids, done.text, done.finish_reason) == wanted, (name, k, late)
                check_events(done, events)
    return plain


def check_events(done: Completion, events: list[TokenEvent]) -> None:
    assert [event.token_id for event in events] == done.token_ids
    assert "".join(event.text for event in events) == done.text
    assert [event.from_draft for event in events] == done.stats.from_draft
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + [done.finish_reason]
    check_stats(done)


def check_stats(done: Completion) -> None:
    stats, count = done.stats, len(done.token_ids)
    assert len(stats.token_times_s) == len(stats.from_draft) == count
    assert stats.token_times_s == sorted(stats.token_times_s)
    assert stats.ttft_s == stats.token_times_s[0] <= stats.token_times_s[-1] <= stats.seconds
    assert not stats.from_draft[0]  # the prompt's pass chose it
    assert len(stats.drafted) == len(stats.accepted)
    assert stats.drafted == sorted(stats.drafted, reverse=True)
    assert stats.accepted == sorted(stats.accepted, reverse=True)
    assert all(a <= d <= stats.rounds for a, d in zip(stats.accepted, stats.drafted, strict=True))
    # A round that ended the text may have accepted tokens that nobody saw.
    assert sum(stats.from_draft) <= sum(stats.accepted)
    assert stats.rounds <= count - 1 <= stats.rounds + sum(stats.accepted)


# ---- where texts end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 23])
def test_max_tokens_cuts_inside_a_run(model: Model, limit: int) -> None:
    done = check_same_end(model, SamplingParams(max_tokens=limit))
    assert done.token_ids == text_of(model)[len(PROMPT) :][:limit]
    assert done.finish_reason == "length"


def first_seen(ids: list[int], least: int) -> int:
    """The first position from `least` on whose token has not been written before."""
    return next(i for i in range(least, len(ids)) if ids[i] not in ids[:i])


@pytest.mark.parametrize("least", [0, 1, 3, 5, 12])
def test_end_tokens_end_the_text_inside_a_run(model: Model, least: int) -> None:
    ids = text_of(model)[len(PROMPT) :]
    at = first_seen(ids, least)
    done = check_same_end(model, LONG, frozenset({ids[at], 9999}))
    assert done.token_ids == ids[: at + 1]  # the end token stays among the ids
    assert done.text == letters(ids[:at])  # but not in the text
    assert done.finish_reason == "stop"


def test_ignored_end_tokens_end_nothing(model: Model) -> None:
    ids = text_of(model)[len(PROMPT) :]
    done = check_same_end(model, replace(LONG, ignore_eos=True), frozenset({ids[4]}))
    assert done.token_ids == ids[:40]
    assert done.finish_reason == "length"
    assert done.text == letters(ids[:40])


@pytest.mark.parametrize(("start", "length"), [(0, 1), (2, 1), (3, 2), (4, 5), (11, 3), (37, 3)])
def test_stop_strings_end_the_text_inside_a_run(model: Model, start: int, length: int) -> None:
    shown = letters(text_of(model)[len(PROMPT) :][:40])
    stop = shown[start : start + length]
    done = check_same_end(model, replace(LONG, stop=("?", stop)))
    assert done.text == shown[: shown.index(stop)]
    assert done.finish_reason == "stop"


def test_an_end_token_within_an_open_stop_string_shows_what_was_held_back(model: Model) -> None:
    ids = text_of(model)[len(PROMPT) :]
    at = first_seen(ids, 6)
    stop = letters(ids[at - 2 : at]) + "?"  # never completed
    done = check_same_end(model, replace(LONG, stop=(stop,)), frozenset({ids[at]}))
    assert done.text == letters(ids[:at])


def test_nothing_runs_after_the_end(model: Model) -> None:
    """The round that ends the text is the last, and its events after the end are dropped."""
    text = text_of(model)
    ids = text[len(PROMPT) :]
    at = first_seen(ids, 3)
    done, events = run(Engine(model.target, Oracle(text), frozenset({ids[at]})), LONG, 15)
    assert len(events) == at + 1
    assert done.stats.rounds == 1


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_stats_of_a_known_drafter(model: Model) -> None:
    """1 first token, then rounds of 5 drafts that are all right: 1 + 6 * 6 = 37 tokens."""
    text, params = text_of(model), SamplingParams(max_tokens=37)
    done, _ = run(Engine(model.target, Oracle(text)), params, K)
    assert done.stats.rounds == 6
    assert done.stats.drafted == done.stats.accepted == [6] * K
    assert done.stats.from_draft == [False] + ([True] * K + [False]) * 6
    assert done.stats.acceptance_length == 6.0
    assert done.stats.prompt_tokens == len(PROMPT)
    assert len(set(done.stats.token_times_s)) == 7  # the tokens of a round come together


def test_stats_of_a_drafter_that_is_right_then_wrong(model: Model) -> None:
    """Round r accepts r % 6 of 5 drafts (the prompt counts as round 0): 1, 2, 3, 4, 5, and again 0."""
    text = text_of(model)
    done, _ = run(Engine(model.target, RightThenWrong(text)), SamplingParams(max_tokens=1 + 2 + 3 + 4 + 5 + 6 + 1), K)
    assert done.stats.rounds == 6
    assert done.stats.accepted == [5, 4, 3, 2, 1]
    assert done.stats.drafted == [5] * K  # the last round had no room for drafts
    assert done.stats.acceptance_length == 1 + 15 / 6


def test_plain_decoding_drafts_nothing(model: Model) -> None:
    done, _ = run(Engine(model.target, Oracle(text_of(model))), LONG, 0)
    assert (done.stats.rounds, done.stats.drafted, done.stats.accepted) == (39, [], [])
    assert not any(done.stats.from_draft)


class Watched(Scripted):
    """Counts what it is asked for."""

    asked: list[int]

    def propose(self, k: int) -> list[int]:
        self.asked = [*getattr(self, "asked", []), k]
        return self.right(k)


def test_no_draft_is_longer_than_what_is_still_wanted(model: Model) -> None:
    drafter = Watched(text_of(model))
    done, _ = run(Engine(model.target, drafter), SamplingParams(max_tokens=10), 4)
    assert drafter.asked == [4, 3]
    assert done.stats.rounds == 2


# ---- requests one after another -------------------------------------------------------------------------------------


def test_requests_leave_nothing_behind(model: Model) -> None:
    """Long, short, abandoned and refused requests on one engine: each text is that of a fresh engine."""
    engine = Engine(model.target, ZOO["mtp"](model, text_of(model)))
    wanted = run(Engine(model.target, NoDrafter()), LONG, 0)[0].token_ids
    short, _ = run(engine, SamplingParams(max_tokens=3), 3, PROMPT[:4])
    assert len(short.token_ids) == 3
    writer = Writer(engine.end_ids, LONG, None, len(PROMPT))
    abandoned = engine.run(PROMPT, LONG, 4, writer)
    next(abandoned)
    abandoned.close()
    with pytest.raises(PromptError):
        run(engine, LONG, 4, [VOCAB])
    assert run(engine, LONG, 4)[0].token_ids == wanted
    assert isinstance(engine.storage, Storage)
    assert len(engine.storage.free_pages) == engine.storage.pages
    assert len(engine.storage.free_rings) == 1


def test_two_requests_at_once_are_refused_in_words(model: Model) -> None:
    engine = Engine(model.target, NoDrafter())
    first = engine.run(PROMPT, LONG, 0, Writer(engine.end_ids, LONG, None, len(PROMPT)))
    next(first)
    with pytest.raises(UsageError, match="as many sequences as it was made for"):
        next(engine.run(PROMPT, LONG, 0, Writer(engine.end_ids, LONG, None, len(PROMPT))))
    first.close()
    assert len(run(engine, LONG, 0)[0].token_ids) == 40


def test_suppressed_tokens_do_not_come_out(model: Model) -> None:
    ids = text_of(model)[len(PROMPT) :][:40]
    banned = tuple(sorted(set(ids[:10])))
    plain, _ = run(Engine(model.target, NoDrafter(), suppress=banned), LONG, 0)
    assert not set(banned) & set(plain.token_ids)
    drafted, _ = run(Engine(model.target, ZOO["mtp"](model, ids), suppress=banned), LONG, 4)
    assert drafted.token_ids == plain.token_ids


# ---- the embedded pair ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> LLM:
    if not (EMBEDDED_PAIR / "assistant" / "config.json").is_file():
        pytest.skip("the embedded pair has no drafter")
    return LLM.from_pretrained("embedded")


CHAT: list[ChatMessage] = [{"role": "user", "content": "Name three colours."}]


def test_prompts_as_text_ids_and_messages(embedded: LLM) -> None:
    params = SamplingParams(max_tokens=24)
    assert embedded.text is not None
    rendered = embedded.text.render(CHAT)
    ids = embedded.encode(CHAT)
    done = embedded.generate([CHAT, rendered, ids], params)
    assert len({(d.text, tuple(d.token_ids)) for d in done}) == 1
    assert done[0].stats.prompt_tokens == len(ids)
    assert done[0].text.strip()


@pytest.mark.parametrize("params", [SamplingParams(max_tokens=48), SamplingParams(temperature=1.0, max_tokens=48)])
def test_the_embedded_pair_writes_the_same_text_with_any_k(embedded: LLM, params: SamplingParams) -> None:
    plain = embedded.generate([CHAT], params, k=0)[0]
    for k in (1, 4, 15):
        done = embedded.generate([CHAT], params, k=k)[0]
        assert (done.text, done.token_ids) == (plain.text, plain.token_ids)
        check_stats(done)
    assert sum(done.stats.accepted) > 0


def test_streaming_is_generating(embedded: LLM) -> None:
    params = SamplingParams(max_tokens=48)
    stream = embedded.stream(CHAT, params)
    events = [next(stream), *stream]
    done = embedded.generate([CHAT], params)[0]
    assert stream.completion().text == done.text == "".join(event.text for event in events)
    assert [event.token_id for event in events] == done.token_ids
    check_events(stream.completion(), events)


def test_stop_strings_in_real_text(embedded: LLM) -> None:
    whole = embedded.generate([CHAT], SamplingParams(max_tokens=48, ignore_eos=True), k=0)[0].text
    stop = whole[len(whole) // 2 :][:5]
    params = SamplingParams(max_tokens=48, ignore_eos=True, stop=(stop,))
    for k in (0, 4, 15):
        done = embedded.generate([CHAT], params, k=k)[0]
        assert (done.text, done.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_ngram_drafts_need_no_checkpoint(embedded: LLM) -> None:
    llm = LLM.from_pretrained("embedded", "ngram")
    prompt = "one two three four. one two three four. one two"
    texts = [llm.generate([prompt], SamplingParams(max_tokens=40), k=k)[0] for k in (0, 6)]
    assert texts[0].token_ids == texts[1].token_ids
    assert sum(texts[1].stats.drafted) > 0
