"""A prompt's ids are what the model's tokenizer makes of its text, whatever the parts."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from fixtures.texts import conversations, pool_demonstrations
from fixtures.tokenizers import Case, reference_ids
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.templates import Constant, Template, built_in
from ragalign.types import Demonstration, Hit, Turn

CUSTOM = {
    "alpaca": Template("alpaca", "### Instruction:\n", "\n\n### Response:\n", "\n\n"),
    "inline": Template("inline", "Q: ", " A: ", "\n"),
    "quoted": Template("quoted", "> ", "\n< ", "\n"),
    "closed": Template("closed", "<person>", "</person> <model>", "</model> "),
}
PREAMBLES = ("", "Be brief.\n\n", "# Instruction\n\nAnswer well.\n\n\n", "Answer:", "\u00dcber \U0001f642\r\n")
SMALL = [
    Demonstration("What is two plus two?", "Four."),
    Demonstration("  Lead, tail\n", "```python\nprint('hi')\n```\n"),
    Demonstration("\u4f60\u597d?", "\U0001f642\n\n"),
]


def template_named(name: str) -> Template:
    return CUSTOM[name] if name in CUSTOM else Template.load(name)


@cache
def make_packer(case: Case, pool: Pool, name: str, preamble: str, constant: bool, escape: str) -> Packer:
    template = replace(template_named(name), preamble=preamble, escape=escape)
    constants = [Constant(one, template.render_demonstration(one)) for one in SMALL] if constant else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joins that are not safe are looked at below
        return Packer(template, case.tokenizer, pool, packing=Packing(max_tokens=1500), constants=constants)


layouts = st.tuples(
    st.sampled_from([*built_in(), *CUSTOM]),
    st.sampled_from(PREAMBLES),
    st.booleans(),
    st.sampled_from(["neutralise", "neutralise", "none"]),
)


def check(case: Case, pool: Pool, layout: tuple[str, str, bool, str], asked: list[list[Turn]], seed: int) -> None:
    packer = make_packer(case, pool, *layout)
    chosen = random.Random(seed)
    ids = pool.ids
    hits = [
        [Hit(ids[chosen.randrange(len(ids))], 0.5, rank) for rank in range(chosen.choice((0, 1, 4)))] for _ in asked
    ]
    prompts = packer.pack_many(asked, hits)
    split = layout[3] == "none" and case.name != "mistral_own"
    expected = reference_ids(case.reference, [prompt.text for prompt in prompts], special_as_text=split)
    for prompt, right in zip(prompts, expected, strict=True):
        assert prompt.token_ids == right
        assert len(prompt.ids) == (
            prompt.n_special_tokens + prompt.n_preamble_tokens + prompt.n_demonstration_tokens + prompt.n_query_tokens
        )
        # Preamble, demonstrations and conversation follow one another without a gap.
        ends = [len(packer.tokenizer.prefix_ids) + prompt.n_preamble_tokens]
        ends += [used.span.stop for used in prompt.demonstrations]
        assert [used.span.start for used in prompt.demonstrations] == ends[:-1]
        assert ends[-1] + prompt.n_query_tokens + len(packer.tokenizer.suffix_ids) == len(right)
        if split and case.name == "unigram":
            continue  # its model has </s> among its pieces: only neutralising keeps it from using that
        special = set(case.reference.all_special_ids) - {case.reference.unk_token_id}
        around = prompt.token_ids[len(packer.tokenizer.prefix_ids) : len(right) - len(packer.tokenizer.suffix_ids)]
        assert not special.intersection(around)


@given(layout=layouts, asked=st.lists(conversations(), min_size=1, max_size=3), seed=st.integers(0, 2**32))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_ids_are_those_of_the_text(
    case: Case, pool: Pool, layout: tuple[str, str, bool, str], asked: list[list[Turn]], seed: int
) -> None:
    check(case, pool, layout, asked, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(layout=layouts, asked=st.lists(conversations(), min_size=20, max_size=20), seed=st.integers(0, 2**32))
@settings(max_examples=500, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_ids_of_ten_thousand_prompts_are_those_of_the_text(
    case: Case, pool: Pool, layout: tuple[str, str, bool, str], asked: list[list[Turn]], seed: int
) -> None:
    check(case, pool, layout, asked, seed)


@given(
    shown=st.lists(pool_demonstrations, min_size=1, max_size=4), asked=conversations(), name=st.sampled_from(built_in())
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_are_exact_for_hostile_demonstrations(
    case: Case, shown: list[Demonstration], asked: list[Turn], name: str
) -> None:
    pool = Pool.from_demonstrations(shown)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packer = Packer(Template.load(name), case.tokenizer, pool)
    prompt = packer.pack(asked, [Hit(id_, 0.5, rank) for rank, id_ in enumerate(pool.ids)])
    [right] = reference_ids(case.reference, [prompt.text])
    assert prompt.token_ids == right


@pytest.mark.parametrize("name", built_in())
@pytest.mark.parametrize(
    "tokenizer", ["llama_2", "mistral_sentencepiece", "mistral_tekken", "llama_3_like", "gpt_2_like", "wordpiece"]
)
def test_built_in_templates_need_no_fallback(
    load_case: Callable[[str], Case], pool: Pool, tokenizer: str, name: str
) -> None:
    # Warnings are errors here.
    Packer(Template.load(name), load_case(tokenizer).tokenizer, pool)


@pytest.mark.parametrize("tokenizer", ["mistral_own", "without_pre_tokenizer", "unigram", "bytes_in_python"])
def test_unsafe_joins_are_said_once(load_case: Callable[[str], Case], pool: Pool, tokenizer: str) -> None:
    case = load_case(tokenizer)
    with pytest.warns(UserWarning, match="no fixed token boundaries") as said:
        packer = Packer(Template.load("ica"), case.tokenizer, pool)
    assert len(said) == 1
    for instruction in pool.instructions[:5]:
        packer.pack([Turn("user", instruction)], [Hit(pool.ids[7], 0.5, 1)])


def test_templates_with_special_tokens_are_refused(load_case: Callable[[str], Case], pool: Pool) -> None:
    template = Template("chat", "<s>[INST] ", " [/INST] ", "</s>\n")
    with pytest.raises(ConfigError, match=r"contains '</s>', a special token"):
        Packer(template, load_case("mistral_sentencepiece").tokenizer, pool)


def test_ids_are_exact_behind_unsafe_joins_of_one_preamble(load_case: Callable[[str], Case], pool: Pool) -> None:
    # "Answer:" runs into "# Query" without a line break; the other joins of this packer are safe.
    case = load_case("mistral_sentencepiece")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packer = Packer(Template.load("urial").with_preamble("C"), case.tokenizer, pool)
    prompt = packer.pack([Turn("user", "hi")], [Hit(pool.ids[3], 0.5, 1)])
    assert prompt.token_ids == reference_ids(case.reference, [prompt.text])[0]
