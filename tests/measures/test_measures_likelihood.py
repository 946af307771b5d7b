"""Reference likelihood: equal to a plain loop over the model, and between backends."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragalign.aligner import Aligner
from ragalign.bench.cases import Cases, load_cases
from ragalign.bench.likelihood import keep_likelihoods, measure_likelihoods, missing_likelihoods, read_likelihoods
from ragalign.errors import BudgetError, ConfigError, DataError, MissingDependencyError
from ragalign.generation import TransformersGenerator, VllmGenerator
from ragalign.measures.likelihood import Likelihood, continuation, likelihoods
from ragalign.models import PACKAGED, locate_model
from ragalign.templates import Template
from ragalign.templates.template import built_in
from ragalign.tokenization import Tokenizer
from ragalign.types import Prompt, Turn

RECIPES = ("zero-shot", "urial", "ica")
ANSWERS = ["Water freezes at zero degrees.", " Two spaces\nand lines.", "```\ncode\n```", "# Query:\nforged", "7", "é…"]


@pytest.fixture(scope="module")
def transformers_engine(tiny_model: Path) -> Iterator[TransformersGenerator]:
    with TransformersGenerator(tiny_model, dtype="float32", device="cpu", batch_size=3) as engine:
        yield engine


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    path = tmp_path_factory.mktemp("cases") / "q.jsonl"
    long = " ".join(f"Item {n} of a long list." for n in range(12))
    rows: list[dict[str, Any]] = [
        {"id": "one", "instruction": "Name a river.", "reference": "The Nile is a river."},
        {"id": "several", "instruction": "Count.", "reference": ["One, two, three.", long]},
        {"id": "none", "instruction": "Unknown?"},
        {"id": "talk", "turns": ["Hi.", "And?"], "reference": ["Hello.", "Nothing."]},
        {"id": "empty", "instruction": "Nothing?", "reference": ""},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_cases(path)


def aligner(recipe: str, generator: Any, model: Path, index: Path | None = None) -> Aligner:
    return Aligner.from_recipe(recipe, index=index, model=generator, tokenizer=model)


def plain_loop(folder: Path, prompt_ids: list[int], answer_ids: list[int]) -> list[float]:
    """Token by token, one sequence at a time: the definition."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for n, id_ in enumerate(answer_ids):
            logits = model(torch.tensor([prompt_ids + answer_ids[:n]])).logits[0, -1]
            found.append(-float(logits.log_softmax(-1)[id_]))
    return found


def test_it_is_what_a_plain_loop_finds(
    transformers_engine: TransformersGenerator, tiny_model: Path, starter_index: Path
) -> None:
    tokenizer = Tokenizer.load(tiny_model)
    for recipe in RECIPES:
        made = aligner(recipe, transformers_engine, tiny_model, starter_index)
        prompt = made.pack("How warm is ice?")
        answers = [continuation(prompt, text, made.packer.template, tokenizer) for text in ANSWERS[:2]]
        found = dict(likelihoods(transformers_engine, [prompt, prompt], answers))
        for number, ids in enumerate(answers):
            expected = plain_loop(tiny_model, prompt.token_ids, ids)
            one = found[number]
            assert isinstance(one, Likelihood)
            assert one.n_tokens == len(ids)
            assert one.nll == pytest.approx(np.mean(expected), abs=1e-4)
            assert one.nll_first32 == pytest.approx(np.mean(expected[:32]), abs=1e-4)
            assert one.bits_per_token == pytest.approx(one.nll / math.log(2))


def test_both_backends_agree(
    transformers_engine: TransformersGenerator,
    vllm_engine: VllmGenerator,
    tiny_model: Path,
    starter_index: Path,
    cases: Cases,
) -> None:
    for recipe in RECIPES:
        rows = []
        for engine in (transformers_engine, vllm_engine):
            made = aligner(recipe, engine, tiny_model, starter_index)
            first = list(measure_likelihoods(made, cases))
            for row, again in zip(first, measure_likelihoods(made, cases), strict=True):
                assert row.get("nll") == pytest.approx(again.get("nll"), abs=1e-5), "it is deterministic"
            rows.append({(row["turn"], row["id"]): row for row in first})
        one, other = rows
        assert set(one) == set(other) == {(1, "one"), (1, "several"), (1, "talk"), (2, "talk"), (1, "empty")}
        assert one[1, "empty"]["reason"] == other[1, "empty"]["reason"] == "the reference is empty"
        for key, row in one.items():
            for name in ("nll", "nll_first32", "bits_per_token"):
                if "reason" not in row:
                    assert row[name] == pytest.approx(other[key][name], abs=0.02), (recipe, key, name)


@pytest.mark.parametrize("form", built_in())
def test_the_answer_follows_as_the_template_has_it(form: str, tiny_model: Path) -> None:
    """Prompt and answer together are what the tokenizer makes of a demonstration, up to its closing."""
    template, tokenizer = Template.load(form), Tokenizer.load(tiny_model)
    for answer in ANSWERS:
        text = template.render_turns([Turn("user", "Why?")])
        ids = [*tokenizer.prefix_ids, *tokenizer.encode(text), *tokenizer.suffix_ids]
        prompt = Prompt((text,), np.array(ids, dtype=np.int32), n_special_tokens=tokenizer.n_special_tokens)
        found = continuation(prompt, answer, template, tokenizer)
        whole = tokenizer.encode(text + template.render_answer(answer))
        assert prompt.token_ids[len(tokenizer.prefix_ids) :] + found == whole, (form, answer)
        if template.middle == template.cue:
            assert template.render_answer("plain") == "plain"
    assert Template.load("ica").render_answer("plain") == " plain"
    assert "forged" in template.render_answer("# Query:\nforged")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    answer=st.text(min_size=1, max_size=30).filter(
        lambda text: bool(text.strip()) and (text.isprintable() or "\n" in text)
    )
)
def test_whatever_the_seam_the_tokens_spell_the_answer(answer: str, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, backend = Tokenizer.load(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    template = Template("seam", opening="<q> ", middle=" <a>", closing=" <e>", escape="none")
    text = template.render_turns([Turn("user", "Why")])
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(text)]
    prompt = Prompt((text,), np.array(ids, dtype=np.int32), n_special_tokens=1)
    found = continuation(prompt, answer, template, tokenizer)
    assert backend.decode(found, clean_up_tokenization_spaces=False) == answer


def test_what_does_not_fit_is_said(transformers_engine: TransformersGenerator, tiny_model: Path) -> None:
    made = aligner("zero-shot", transformers_engine, tiny_model)
    prompt = made.pack("Hi")
    long = continuation(prompt, "word " * 3000, made.packer.template, Tokenizer.load(tiny_model))
    [(place, found)] = likelihoods(transformers_engine, [prompt], [long])
    assert place == 0
    assert isinstance(found, BudgetError)
    with pytest.raises(DataError, match="the reference is empty"):
        continuation(prompt, "", made.packer.template, Tokenizer.load(tiny_model))


def test_positions_are_told_apart() -> None:
    values = np.array([-1.0] * 32 + [-2.0] * 32, dtype=np.float32)
    one = Likelihood.of(values)
    assert (one.n_tokens, one.nll, one.nll_first32, one.nll_rest) == (64, 1.5, 1.0, 2.0)
    assert Likelihood.of(values[:5]).nll_rest is None


def test_an_interrupted_measurement_resumes(
    transformers_engine: TransformersGenerator, tiny_model: Path, cases: Cases, tmp_path: Path
) -> None:
    made = aligner("zero-shot", transformers_engine, tiny_model)
    path = tmp_path / "conditions" / "zero-shot" / "likelihood.jsonl"
    assert len(missing_likelihoods(path, cases)) == 5
    keep_likelihoods(path, made, cases)
    whole = read_likelihoods(path, cases)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:10])
    assert len(missing_likelihoods(path, cases)) == 3
    keep_likelihoods(path, made, cases)
    again = read_likelihoods(path, cases)
    assert list(again) == list(whole)
    assert all(again[key].get("nll") == pytest.approx(whole[key].get("nll"), nan_ok=True) for key in whole)
    # Other references are measured again; the old figures are not taken for theirs.
    [first, *others] = cases.cases
    changed = replace(cases, cases=(replace(first, references=(("Another.",),)), *others))
    assert missing_likelihoods(path, changed) == [(1, "one")]
    row = json.loads(lines[0])
    del row["nll"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"likelihood\.jsonl is damaged: delete it"):
        read_likelihoods(path, cases)
    path.write_text("notes of mine\n")
    with pytest.raises(DataError, match="not written by this command"):
        read_likelihoods(path, cases)


def test_an_endpoint_cannot_say(cases: Cases, tiny_model: Path) -> None:
    class Endpoint:
        model, context_length, shares_cpu = "remote", 2048, False

    with pytest.raises(ConfigError, match="vllm or transformers"):
        list(measure_likelihoods(aligner("zero-shot", Endpoint(), tiny_model), cases))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["zero-shot", "ica"])
def test_it_is_what_a_plain_loop_finds_with_a_real_model(recipe: str, starter_index: Path, tmp_path: Path) -> None:
    """Gemma's tokenizer writes BOS and merges freely; nothing may get lost at the seam."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        PACKAGED["gemma-3-270m"].paths()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    folder = locate_model("packaged:gemma-3-270m")
    with TransformersGenerator(folder, dtype="float32", device="cpu") as engine:
        made = aligner(recipe, engine, folder, starter_index)
        prompt = made.pack("What is the capital of France?")
        answer = "The capital of France is Paris."
        ids = continuation(prompt, answer, made.packer.template, made.packer.tokenizer)
        [(_, found)] = likelihoods(engine, [prompt], [ids])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = prompt.text + made.packer.template.render_answer(answer)
    whole = [*made.packer.tokenizer.prefix_ids, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert prompt.token_ids + ids == whole, "prompt and answer are the tokenizer's ids of the whole text"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logprobs = model(torch.tensor([whole]), logits_to_keep=len(ids) + 1).logits[0].log_softmax(-1)
    expected = [-float(logprobs[place, id_]) for place, id_ in enumerate(ids)]
    assert isinstance(found, Likelihood)
    assert found.nll == pytest.approx(np.mean(expected), abs=1e-3)
    assert found.nll < 4, "a real model expects the right answer"
