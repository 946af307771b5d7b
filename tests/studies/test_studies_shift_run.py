"""The whole analysis on two small models: against a plain loop, between engines, interrupted, and in the browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.command import Command
from fixtures.tiny_model import TEXTS, build_tuned

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation import TransformersGenerator, build_toy_model
from ragalign.studies.shift import running
from ragalign.studies.shift.figures import figures
from ragalign.studies.shift.page import write_pages
from ragalign.studies.shift.record import Reading
from ragalign.studies.shift.running import ShiftOutcome, ShiftSettings, run
from ragalign.types import Query, Turn

NOW = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
ATTACK = "</script><img src=x onerror='window.pwned = 1'>"
QUESTIONS = ["How do I boil an egg?", "Name three rivers.", f"What is {ATTACK}?", "Write a short note.", "Why?"]
QUERIES = [Query(f"q/{number}", (Turn("user", text),)) for number, text in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tuned(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tuned: Path) -> ShiftSettings:
    return ShiftSettings(
        str(tiny_model),
        str(tuned),
        recipes=("zero-shot", "urial"),
        max_tokens=14,
        backend="transformers",
        options={"dtype": "float32", "device": "cpu"},
    )


@pytest.fixture(scope="module")
def outcome(settings: ShiftSettings, tmp_path_factory: pytest.TempPathFactory) -> ShiftOutcome:
    return run(settings, QUERIES, tmp_path_factory.mktemp("shift") / "run")


def same_readings(one: ShiftOutcome, other: ShiftOutcome) -> bool:
    """Up to rounding, which depends on what is in a batch."""
    assert [answer.token_ids for answer in one.answers] == [answer.token_ids for answer in other.answers]
    for name, found in one.readings.items():
        assert found.keys() == other.readings[name].keys()
        for id_, reading in found.items():
            again = other.readings[name][id_]
            assert (reading.n_prompt_tokens, reading.n_demonstrations) == (
                again.n_prompt_tokens,
                again.n_demonstrations,
            )
            for here, there in zip(reading.places, again.places, strict=True):
                assert (here is None) == (there is None)
                if here and there:
                    assert here.logprob == pytest.approx(there.logprob, abs=2e-3)
                    assert here.rank == there.rank or abs(here.logprob - there.logprob) < 2e-3
                    assert (here.kl is None) == (there.kl is None)
                    assert here.kl is None or here.kl == pytest.approx(there.kl, abs=5e-3)
    return True


def test_equal_to_a_plain_loop(settings: ShiftSettings, outcome: ShiftOutcome) -> None:
    """Greedy answers, ranks, probabilities and divergences, one forward pass per token, no batch and no cache."""
    import torch
    from scipy.special import rel_entr
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for name in (settings.aligned, settings.base)
    ]
    assert [answer.id for answer in outcome.answers] == [query.id for query in QUERIES]
    kinds = set()
    for answer in outcome.answers:
        assert answer.token_ids
        ids = list(answer.prompt_ids)
        for place, token in zip(outcome.readings["same"][answer.id].places, answer.token_ids, strict=True):
            assert place is not None
            with torch.no_grad():
                p, q = (model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy() for model in models)
            assert token == p.argmax()
            assert place.rank == 1 + (q > q[token]).sum()
            assert place.logprob == pytest.approx(np.log(q[token]), abs=2e-3)
            assert place.kl == pytest.approx(rel_entr(p, q).sum(), abs=2e-3)
            assert [value for _, value in place.best] == pytest.approx(np.log(-np.sort(-q)[:5]).tolist(), abs=2e-3)
            kinds.add(min(place.rank, 4))
            ids.append(token)
    assert kinds >= {1, 4}


def test_a_recipes_context_holds_the_same_answer(settings: ShiftSettings, outcome: ShiftOutcome) -> None:
    """The base model reads the answer behind the recipe's prompt, tokenised as one text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ragalign.aligner import Aligner
    from ragalign.tokenization import Tokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.base)
    model = AutoModelForCausalLM.from_pretrained(settings.base, dtype=torch.float32)
    aligner = Aligner.from_recipe("urial", tokenizer=Tokenizer.load(settings.base), context_length=2048)
    for query, answer in zip(QUERIES, outcome.answers, strict=True):
        prompt = aligner.packer.pack(query.turns, [], max_new_tokens=settings.max_tokens + 8)
        text = prompt.text + answer.text.lstrip()
        ids = tokenizer(text).input_ids
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        own = [logprobs[place - 1, ids[place]].item() for place in range(1, len(ids))]
        read = [place.logprob for place in outcome.readings["urial"][answer.id].places if place is not None]
        assert len(read) >= len(answer.token_ids) - 2
        # The answer is the end of the text.
        assert read[-5:] == pytest.approx(own[-5:], abs=2e-3)
        assert outcome.readings["urial"][answer.id].n_demonstrations == len(prompt.demonstrations) > 0


def test_figures_are_those_of_the_readings(outcome: ShiftOutcome) -> None:
    shown = {one.context: one for one in figures(outcome)}
    for name, one in shown.items():
        ranks = [place.rank for found in outcome.readings[name].values() for place in found.places if place]
        expected = {
            "unshifted": np.mean(np.equal(ranks, 1)),
            "marginal": np.mean(np.isin(ranks, (2, 3))),
            "shifted": np.mean(np.greater(ranks, 3)),
        }
        assert {kind: share.value for kind, share in one.shares.items()} == pytest.approx(expected)
        assert one.n_positions == len(ranks)
        assert sum(share for _, share in one.ranks) == pytest.approx(1)
        assert sum(share.shares["shifted"].n for share in one.by_position) == len(ranks)
        assert sum(token.n_shifted for token in one.tokens) <= sum(rank > 3 for rank in ranks)
    urial = shown["urial"].closed
    assert urial is not None
    pairs = [
        (before.rank > 3, after.rank > 3)
        for id_, found in outcome.readings["urial"].items()
        for before, after in zip(outcome.readings["same"][id_].places, found.places, strict=True)
        if before and after
    ]
    before, after = np.sum(pairs, axis=0)
    assert urial.value == pytest.approx(1 - after / before)
    json.dumps([one.to_dict() for one in shown.values()], allow_nan=False)


def test_interrupted_anywhere_it_goes_on(
    settings: ShiftSettings, outcome: ShiftOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_BATCH", 2)
    real = TransformersGenerator.distributions
    calls = []
    fails_at = -1

    def failing(self: Any, sequences: Any, starts: Any, *, top_k: int | None = None) -> Any:
        calls.append(len(sequences))
        if len(calls) == fails_at:
            raise GenerationError("pulled the plug")
        return real(self, sequences, starts, top_k=top_k)

    monkeypatch.setattr(TransformersGenerator, "distributions", failing)
    run(settings, QUERIES, tmp_path / "whole")
    whole = len(calls)
    for fails_at in (1, 2, whole // 2, whole):
        calls.clear()
        folder = tmp_path / str(fails_at)
        with pytest.raises(GenerationError, match="plug"):
            run(settings, QUERIES, folder)
        # A line that was cut off is done again.
        for file in folder.glob("*.jsonl"):
            file.write_bytes(file.read_bytes() + b'{"id": "q/')
        done = len(calls)
        again = run(settings, QUERIES, folder)
        assert same_readings(again, outcome)
        # Only the batch that failed is done twice, and answers whose distributions had not been used yet.
        assert len(calls) <= whole + 1
        assert done == fails_at
        before = len(calls)
        assert same_readings(run(settings, QUERIES, folder), outcome)
        assert len(calls) == before
    with pytest.raises(ConfigError, match="max_tokens was 14 and is 20"):
        run(replace(settings, max_tokens=20), QUERIES, tmp_path / "whole")


def test_other_tokenizers_are_refused_or_aligned_by_text(settings: ShiftSettings, tmp_path: Path) -> None:
    other = build_toy_model(tmp_path / "other", TEXTS[:2] * 4, seed=3, vocab_size=400, context_length=2048)
    mixed = replace(settings, base=str(other), recipes=("zero-shot",))
    with pytest.raises(ConfigError, match=r"different tokenizers.*--align-by-text"):
        run(mixed, QUERIES, tmp_path / "run")
    found = run(replace(mixed, align_by_text=True), QUERIES, tmp_path / "run")
    assert not found.shared
    places = [place for one in found.readings["same"].values() for place in one.places]
    assert any(place is None for place in places)
    read = [place for place in places if place is not None]
    assert read
    assert all(place.kl is None for place in read)
    shown = figures(found)
    assert shown[0].n_elsewhere == len(places) - len(read)


def test_a_model_with_nothing_to_say_gives_no_figures(settings: ShiftSettings, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    build_toy_model(tmp_path / "mute", TEXTS * 4, seed=0, vocab_size=768, context_length=2048)
    weights = load_file(tmp_path / "mute" / "model.safetensors")
    weights["lm_head.weight"].zero_()  # every token is as likely; the first, BOS, is no text
    save_file(weights, tmp_path / "mute" / "model.safetensors", metadata={"format": "pt"})
    mute = replace(settings, aligned=str(tmp_path / "mute"))
    found = run(mute, QUERIES, tmp_path / "run")
    assert [answer.text for answer in found.answers] == [""] * len(QUERIES)
    shown = figures(found)
    assert [one.n_positions for one in shown] == [0, 0, 0]
    json.dumps([one.to_dict() for one in shown], allow_nan=False)
    write_pages(mute, found, shown, tmp_path, created=NOW)


def test_less_of_the_vocabulary_gives_the_same_ranks(
    settings: ShiftSettings, outcome: ShiftOutcome, tmp_path: Path
) -> None:
    top = run(replace(settings, top_k=5), QUERIES, tmp_path / "run")
    for name, found in outcome.readings.items():
        for id_, one in found.items():
            for full, less in zip(one.places, top.readings[name][id_].places, strict=True):
                assert (full is None) == (less is None)
                if full and less:
                    assert (full.rank, full.best) == (less.rank, less.best)
                    assert full.logprob == pytest.approx(less.logprob, abs=1e-4)
                    if full.kl is not None and less.kl is not None:
                        assert less.kl <= full.kl + 1e-3


@pytest.mark.slow
def test_vllm_finds_what_transformers_finds() -> None:
    """In a process of its own: the session's engine may live in this one, and there is room for one only."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::test_on_vllm_alone"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RAGALIGN_TEST_ALONE": "1"})
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.skipif("RAGALIGN_TEST_ALONE" not in os.environ, reason="runs in a process of its own")
def test_on_vllm_alone(settings: ShiftSettings, outcome: ShiftOutcome, tmp_path: Path) -> None:
    options = {"dtype": "float32", "max_model_len": 2048, "kv_cache_memory_bytes": 2**30}
    found = run(replace(settings, backend="vllm", options=options), QUERIES, tmp_path / "run")
    assert same_readings(found, outcome)


def test_readings_survive_json(outcome: ShiftOutcome) -> None:
    for one in outcome.readings["same"].values():
        assert Reading.from_dict(json.loads(json.dumps(one.to_dict()))).to_dict() == one.to_dict()


def test_the_command_writes_everything(
    settings: ShiftSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ragalign = Command(monkeypatch, capsys)
    prompts = tmp_path / "q.jsonl"
    prompts.write_text("".join(json.dumps({"id": q.id, "instruction": q.text}) + "\n" for q in QUERIES))
    arguments = ["analyze", "shift", "--base", settings.base, "--aligned", settings.aligned, "--queries", prompts]
    arguments += ["--first", "2", "--recipe", "zero-shot", "--max-new-tokens", "8", "--backend", "transformers"]
    done = ragalign(*arguments, "--out", tmp_path / "run", columns=140)
    assert done.returncode == 0, done.stderr
    assert "zero-shot" in done.stdout
    assert "Most shifted tokens" in done.stdout
    assert {file.name for file in (tmp_path / "run").iterdir()} >= {
        "shift.html", "shift.json", "ranks.svg", "shifted-by-position.svg", "answers.jsonl", "context-same.jsonl",
    }  # fmt: skip
    shown = json.loads(ragalign(*arguments, "--out", tmp_path / "run", "--json").stdout)
    assert [one["context"] for one in shown["contexts"]] == ["same", "zero-shot"]
    for change, message in (
        (["--recipe", "magic"], "no recipe 'magic'"),
        (["--base", str(tmp_path / "nowhere")], "no model folder"),
    ):
        done = ragalign(*arguments, *change, "--out", tmp_path / "other")
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def page(
    settings: ShiftSettings, outcome: ShiftOutcome, chromium: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("page")
    write_pages(settings, outcome, figures(outcome), folder, created=NOW)

    def show(width: int = 1280, height: int = 900, scheme: str = "light") -> Callable[..., Any]:
        chromium.get_log("browser")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        chromium.get((folder / "shift.html").as_uri())
        return lambda script: chromium.execute_script(f"return {script}")

    yield show
    assert chromium.get_log("browser") == []


def test_tokens_are_coloured_and_say_what_was_expected(page: Any, outcome: ShiftOutcome, chromium: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ask = page()
    for number, name in enumerate(outcome.readings):
        ask(f"void (document.getElementById('context').value = {number}, "
            "document.getElementById('context').dispatchEvent(new Event('change')))")  # fmt: skip
        places = outcome.readings[name]["q/0"].places
        expected = [
            "elsewhere" if one is None else "unshifted" if one.rank == 1 else "marginal" if one.rank < 4 else "shifted"
            for one in places
        ]
        assert ask("[...document.querySelectorAll('#tokens [data-n]')].map((one) => one.className)") == expected
    text = ask("document.getElementById('tokens').textContent")
    assert text.replace("↵", "") == outcome.answers[0].text
    token = chromium.find_element("css selector", "#tokens [data-n='1']")
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", token)
    ActionChains(chromium).move_to_element(token).perform()
    assert ask("document.getElementById('tip').hidden") is False
    place = outcome.readings["urial"]["q/0"].places[1]
    assert place is not None
    tip = ask("document.getElementById('tip').textContent")
    assert f"rank {place.rank:,} of the base model" in tip
    assert len(chromium.find_elements("css selector", "#tip tr")) == len(place.best)
    ask("void (document.getElementById('answer').value = 2, "
        "document.getElementById('answer').dispatchEvent(new Event('change')))")  # fmt: skip
    assert ATTACK in ask("document.getElementById('asked').textContent")
    assert ask("window.pwned") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(page: Any, scheme: str) -> None:
    for width in (390, 320, 1280):
        ask = page(width, 844, scheme)
        assert ask("document.documentElement.scrollWidth") <= width
    red, green, blue = map(int, re.findall(r"\d+", ask("getComputedStyle(document.body).backgroundColor")))
    assert (red + green + blue < 150) == (scheme == "dark")
