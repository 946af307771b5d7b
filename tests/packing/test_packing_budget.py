"""Budgets hold whatever comes in, and every candidate is accounted for."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fixtures.texts import conversations, texts
from fixtures.tokenizers import Case, reference_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragalign.errors import BudgetError, ConfigError, DataError
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.templates import Constant, PromptFile, Template, built_in
from ragalign.types import Demonstration, Hit, Prompt, Turn

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# One that packs from parts, and three that tokenise the whole: with offsets, without, and without knowing its joins.
TOKENIZERS = ["llama_3_like", "wordpiece", "without_pre_tokenizer", "unigram", "bytes_in_python"]

DEMONSTRATIONS = [
    Demonstration(
        f"Question number {n}? " + "more words here " * (n % 7), f"Answer {n}. " + "and so on, " * (n * n % 41)
    )
    for n in range(40)
]
SMALL = Pool.from_demonstrations(DEMONSTRATIONS)


@pytest.fixture(scope="session", params=TOKENIZERS)
def budget_case(request: pytest.FixtureRequest, load_case: Callable[[str], Case]) -> Case:
    return load_case(request.param)


@cache
def make_packer(
    case: Case, form: str, packing: Packing, n_constants: int, context_length: int | None, preamble: str = ""
) -> Packer:
    template = Template.load(form).with_preamble(preamble)
    constants = [Constant(one, template.render_demonstration(one)) for one in DEMONSTRATIONS[:n_constants]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Packer(
            template, case.tokenizer, SMALL, packing=packing, constants=constants, context_length=context_length
        )


packings = st.builds(
    Packing,
    max_demonstrations=st.integers(0, 12),
    max_tokens=st.sampled_from([0, 1, 60, 150, 400, 1000, 5000]),
    max_demonstration_tokens=st.sampled_from([0, 40, 100, 500]),
    when_full=st.sampled_from(["stop", "skip"]),
    order=st.sampled_from(["most_similar_last", "most_similar_first", "random"]),
)


def as_hits(chosen: list[int]) -> list[Hit]:
    return [Hit(DEMONSTRATIONS[n].id, 1 - rank / 100, rank) for rank, n in enumerate(chosen, start=1)]


def check_accounts(prompt: Prompt, packer: Packer, hits: list[Hit]) -> None:
    packing = packer.packing
    used = [one.id for one in prompt.demonstrations]
    dropped = [one.id for one in prompt.dropped]
    candidates = {*(hit.id for hit in hits), *(constant.demonstration.id for constant in packer.constants)}
    assert sorted(used + dropped) == sorted(candidates)
    assert len(used) <= packing.max_demonstrations
    assert prompt.n_demonstration_tokens <= packing.max_tokens
    assert all(n >= 0 for n in (prompt.n_preamble_tokens, prompt.n_query_tokens))
    assert all(one.n_tokens >= 0 for one in (*prompt.demonstrations, *prompt.dropped))
    parts = prompt.n_preamble_tokens + prompt.n_demonstration_tokens + prompt.n_query_tokens
    assert parts == prompt.n_tokens == len(prompt.ids) - prompt.n_special_tokens
    assert prompt.n_special_tokens == packer.tokenizer.n_special_tokens
    assert "".join(prompt.pieces) == prompt.text
    assert len(prompt.pieces) == (1 if packer.template.render_preamble() else 0) + len(used) + 1


@given(
    form=st.sampled_from(["ica", "urial"]),
    packing=packings,
    n_constants=st.integers(0, 4),
    context_length=st.sampled_from([None, 100, 200, 400, 800, 4096]),
    chosen=st.lists(st.integers(0, len(DEMONSTRATIONS) - 1), max_size=25),
    turns=conversations(max_pairs=1, system=False),
    max_new_tokens=st.integers(0, 300),
)
@SETTINGS
def test_budgets_hold(
    budget_case: Case,
    form: str,
    packing: Packing,
    n_constants: int,
    context_length: int | None,
    chosen: list[int],
    turns: list[Turn],
    max_new_tokens: int,
) -> None:
    packer = make_packer(budget_case, form, packing, n_constants, context_length)
    hits = as_hits(chosen)
    [prompt] = packer.pack_many([turns], [hits], max_new_tokens=max_new_tokens)
    if isinstance(prompt, BudgetError):
        # The query alone is too long, by what the message says.
        alone = reference_ids(budget_case.reference, [packer.template.render(turns)])[0]
        assert context_length is not None
        over = len(alone) + max_new_tokens - context_length
        assert over > 0
        assert f"exceeds the model's context of {context_length:,} by {over:,}" in str(prompt)
        return
    check_accounts(prompt, packer, hits)
    assert prompt.token_ids == reference_ids(budget_case.reference, [prompt.text])[0]
    if context_length is not None:
        assert len(prompt.ids) + max_new_tokens <= context_length
    reasons = {one.id: one.reason for one in prompt.dropped}
    if context_length is None:
        assert "context" not in reasons.values()
    used = [one.id for one in prompt.demonstrations]
    # Constants come first and in their order; the others in the order asked for.
    constants = [one.id for one in prompt.demonstrations if one.score is None]
    assert used[: len(constants)] == [constant.demonstration.id for constant in packer.constants][: len(constants)]
    ranked = [hit.id for hit in hits if hit.id in used[len(constants) :]]
    ranked = list(dict.fromkeys(ranked))
    if packing.order == "most_similar_first":
        assert used[len(constants) :] == ranked
    elif packing.order == "most_similar_last":
        assert used[len(constants) :] == ranked[::-1]
    else:
        assert sorted(used[len(constants) :]) == sorted(ranked)
        again = packer.pack(turns, hits, max_new_tokens=max_new_tokens)
        assert again.demonstrations == prompt.demonstrations


def test_stop_and_skip(load_case: Callable[[str], Case]) -> None:
    case = load_case("llama_3_like")
    lengths = [len(case.tokenizer.encode(Template.load("ica").render_demonstration(one))) for one in DEMONSTRATIONS]
    long, short = lengths.index(max(lengths)), sorted(range(40), key=lengths.__getitem__)[:6]
    hits = as_hits([short[0], short[1], long, short[2], short[3]])
    budget = sum(lengths[n] for n in short[:5])
    for when_full, used, reasons in (
        ("stop", [short[1], short[0]], ["budget", "stopped", "stopped"]),
        ("skip", [short[3], short[2], short[1], short[0]], ["budget"]),
    ):
        packing = Packing(max_tokens=budget, max_demonstration_tokens=max(lengths) + 9, when_full=when_full)
        prompt = make_packer(case, "ica", packing, 0, None).pack([Turn("user", "Hi?")], hits)
        assert [one.id for one in prompt.demonstrations] == [DEMONSTRATIONS[n].id for n in used]
        assert [one.reason for one in prompt.dropped] == reasons
        assert prompt.dropped[0].n_tokens == pytest.approx(lengths[long], abs=2)
    packing = Packing(max_demonstration_tokens=max(lengths) - 9)
    prompt = make_packer(case, "ica", packing, 0, None).pack([Turn("user", "Hi?")], hits)
    assert [(one.id, one.reason) for one in prompt.dropped] == [(DEMONSTRATIONS[long].id, "too_long")]
    packing = Packing(max_demonstrations=2)
    prompt = make_packer(case, "ica", packing, 0, None).pack([Turn("user", "Hi?")], hits)
    assert [one.reason for one in prompt.dropped] == ["stopped"] * 3


def test_demonstrations_are_not_repeated(load_case: Callable[[str], Case]) -> None:
    packer = make_packer(load_case("llama_3_like"), "urial", Packing(), 2, None)
    hits = as_hits([0, 5, 5, 1, 6, 5])
    prompt = packer.pack([Turn("user", "Hi?")], hits)
    assert [one.id for one in prompt.demonstrations] == [DEMONSTRATIONS[n].id for n in (0, 1, 6, 5)]
    assert [one.score is None for one in prompt.demonstrations] == [True, True, False, False]
    check_accounts(prompt, packer, hits)


def test_constants_that_do_not_fit_are_said_once(load_case: Callable[[str], Case]) -> None:
    case = load_case("llama_3_like")
    template = Template.load("urial")
    constants = [Constant(one, template.render_demonstration(one)) for one in DEMONSTRATIONS[:6]]
    said = "only the first 4 of 6 constant demonstrations are used: max_demonstrations is 4, max_tokens 3,000"
    with pytest.warns(UserWarning, match=said):
        packer = Packer(template, case.tokenizer, SMALL, packing=Packing(max_demonstrations=4), constants=constants)
    prompt = packer.pack([Turn("user", "Hi?")], [])
    assert [one.id for one in prompt.demonstrations] == [one.id for one in DEMONSTRATIONS[:4]]
    assert [(one.id, one.reason) for one in prompt.dropped] == [(one.id, "stopped") for one in DEMONSTRATIONS[4:6]]
    budget = sum(one.n_tokens for one in prompt.demonstrations[:3]) + 1
    with pytest.warns(UserWarning, match="only the first 3 of 6"):
        packer = Packer(template, case.tokenizer, SMALL, packing=Packing(max_tokens=budget), constants=constants)
    prompt = packer.pack([Turn("user", "Hi?")], as_hits([9]))
    assert [one.reason for one in prompt.dropped] == ["budget"] * 4
    check_accounts(prompt, packer, as_hits([9]))


def test_constants_give_way_to_the_query_in_a_small_context(load_case: Callable[[str], Case]) -> None:
    case = load_case("llama_3_like")
    turns = [Turn("user", "a long question " * 30)]
    whole = make_packer(case, "urial", Packing(), 4, None).pack(turns, [])
    packer = make_packer(case, "urial", Packing(), 4, len(whole.ids) + 49)
    prompt = packer.pack(turns, [], max_new_tokens=50)
    assert [one.reason for one in prompt.dropped] == ["context"]
    assert len(prompt.demonstrations) == 3
    assert prompt.token_ids == reference_ids(case.reference, [prompt.text])[0]
    assert packer.pack(turns, [], max_new_tokens=49).demonstrations == whole.demonstrations


def test_one_query_that_is_too_long_fails_alone(load_case: Callable[[str], Case]) -> None:
    packer = make_packer(load_case("llama_3_like"), "ica", Packing(), 0, 200)
    asked = [[Turn("user", text)] for text in ("Hi?", "long " * 500, "Bye?")]
    packed = packer.pack_many(asked, [as_hits([1, 2])] * 3, max_new_tokens=20)
    assert [isinstance(one, BudgetError) for one in packed] == [False, True, False]
    with pytest.raises(BudgetError, match=r"the query takes \d+ tokens; with the preamble \(0\), special tokens \(1\)"):
        packer.pack(asked[1], [], max_new_tokens=20)


@given(bad=st.sampled_from(["max_demonstrations", "max_tokens", "max_demonstration_tokens"]))
def test_packings_are_checked(bad: str) -> None:
    with pytest.raises(ConfigError, match=f"packing: {bad} must be 0 or more, not -1"):
        Packing(**{bad: -1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="packing: when_full is 'halt'; use one of stop, skip"):
        Packing(when_full="halt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="packing: order is 'best'; use one of"):
        Packing(order="best")  # type: ignore[arg-type]


def test_lone_surrogates_and_unknown_hits_are_data_errors(load_case: Callable[[str], Case]) -> None:
    packer = make_packer(load_case("llama_3_like"), "ica", Packing(), 0, None)
    for turns in ([Turn("user", "\udc80")], [Turn("system", "\udc80"), Turn("user", "x")]):
        with pytest.raises(
            DataError, match=r"turn 1 is not valid Unicode: character 1 is a lone surrogate \(U\+DC80\)"
        ):
            packer.pack(turns, [])
    with pytest.raises(DataError):
        packer.pack([Turn("user", "x")], [Hit("0" * 16, 0.5, 1)])


@given(turns=conversations(), system=texts)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prompts_parse_back(load_case: Callable[[str], Case], turns: list[Turn], system: str) -> None:
    case = load_case("llama_3_like")
    for form in built_in():
        packer = make_packer(case, form, Packing(), 2, None, "Be kind.\n\n")
        asked = [Turn("system", system), *(turn for turn in turns if turn.role != "system")]
        prompt = packer.pack(asked, as_hits([3, 4]))
        body = prompt.text[len(packer.template.render_preamble(system)) :]
        shown = [DEMONSTRATIONS[n] for n in (0, 1, 4, 3)]
        expected = [turn for one in shown for turn in (("user", one.instruction), ("assistant", one.response))]
        expected += [(turn.role, turn.content) for turn in asked if turn.role != "system"]
        assert [(turn.role, turn.content) for turn in packer.template.parse(body)] == expected


def test_in_context_alignment_goldens(shared_data: Path, load_case: Callable[[str], Case]) -> None:
    pool = Pool.load(shared_data / "pools" / "lima_1k.jsonl")
    ids = {one.source_id: one.id for one in pool}
    packer = Packer(Template.load("ica"), load_case("llama_2").tokenizer, pool)
    rows = (shared_data / "ica" / "selection_golden.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 60
    for row in map(json.loads, rows):
        chosen = [ids[f"lima-{number}"] for number in row["selected_most_relevant_first"]]
        prompt = packer.pack([Turn("user", row["query"])], [Hit(id_, 0.5, n) for n, id_ in enumerate(chosen, 1)])
        assert prompt.text == row["prompt"]
        assert prompt.n_tokens == row["n_tokens"]
        assert [one.id for one in prompt.demonstrations] == chosen[::-1]
        assert prompt.dropped == ()


@pytest.mark.parametrize("name", ["inst_1k_v4.txt", "inst_1k.txt", "inst_help_v5-1k.txt", "inst_only.txt"])
def test_prompt_files_are_packed_as_they_are(shared_data: Path, load_case: Callable[[str], Case], name: str) -> None:
    case = load_case("llama_2")
    file = PromptFile.load(shared_data / "urial" / "prompts" / name)
    packer = Packer(file.prompt_template(), case.tokenizer, SMALL, constants=file.prompt_constants())
    turns = [Turn("user", "What is the capital of France?")]
    prompt = packer.pack(turns, [])
    assert prompt.text == file.render(turns)
    assert prompt.token_ids == reference_ids(case.reference, [prompt.text])[0]
    assert len(prompt.demonstrations) == len(file.constants)
    check_accounts(prompt, packer, [])


def test_long_contexts_take_linear_time(load_case: Callable[[str], Case]) -> None:
    case = load_case("llama_3_like")
    pool = Pool.from_demonstrations(Demonstration(f"What is {n}? " * 20, f"It is {n}. " * 40) for n in range(400))
    packing = Packing(max_demonstrations=400, max_tokens=200_000)
    packer = Packer(Template.load("ica"), case.tokenizer, pool, packing=packing, context_length=131_072)
    hits = [Hit(id_, 1 - n / 1000, n) for n, id_ in enumerate(pool.ids, 1)]
    packer.pack([Turn("user", "Hi?")], hits)

    def seconds(n: int) -> float:
        start = time.process_time()
        packer.pack([Turn("user", "Hi?")], hits[:n], max_new_tokens=1000)
        return time.process_time() - start

    prompt = packer.pack([Turn("user", "Hi?")], hits, max_new_tokens=1000)
    assert len(prompt.demonstrations) > 200
    assert 100_000 < len(prompt.ids) <= 130_072
    check_accounts(prompt, packer, hits)
    small, large = min(seconds(40) for _ in range(9)), min(seconds(320) for _ in range(9))
    assert large < 8 * 4 * small
