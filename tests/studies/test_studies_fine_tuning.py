"""In context against fine-tuning, on a small model: cells, what is trained on, interruption, figures and page."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.command import Command
from hypothesis import given
from hypothesis import strategies as st

from ragalign._optional import is_installed
from ragalign.aligner import Aligner
from ragalign.bench.cases import Case, Cases
from ragalign.bench.likelihood import measure_likelihoods
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, GenerationError
from ragalign.indexes import Index
from ragalign.packing import Packer
from ragalign.pool import Pool
from ragalign.studies.fine_tuning import running
from ragalign.studies.fine_tuning.cells import Cell, drawn, plan
from ragalign.studies.fine_tuning.figures import break_even, points
from ragalign.studies.fine_tuning.page import write_pages
from ragalign.studies.fine_tuning.running import FineTuningSettings, Result, run
from ragalign.studies.fine_tuning.training import Training, fine_tune, make_examples
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration, Query, Turn

COLOURS = ("red", "blue", "green", "grey", "brown", "white")
POOL = [Demonstration(f"What colour is thing {n}?", f"It is {COLOURS[n % 6]}.\nUser: {n}") for n in range(12)]
QUERIES = [
    Query(f"q{n}", (Turn("user", f"What colour is item {n}?"),), {"reference": f"It is {COLOURS[n]}."})
    for n in range(3)
]
METHODS = ("zero-shot", "constant", "retrieved", "retrieved-pool", "lora", "full")
TRAINING = Training(epochs=2, batch_size=4, per_device=2, learning_rate=1e-3, lora_learning_rate=1e-2)

# Not importorskip: importing trl sets how much every later engine in this process talks.
needs_trainers = pytest.mark.skipif(not is_installed("trl"), reason="needs the `train` extra")


@pytest.fixture(scope="module")
def index(minilm: Encoder) -> Index:
    # One demonstration asks what is asked of the models.
    return Index.build(
        Pool.from_demonstrations([*POOL, Demonstration(" What colour is ITEM 1?", "It is blue.")]), minilm
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "mine.toml"
    path.write_text('[template]\nform = "plain"\n[retriever]\nname = "dense"\n[decoding]\nmax_tokens = 6\n')
    return path


@pytest.fixture(scope="module")
def settings(tiny_model: Path, recipe: Path) -> FineTuningSettings:
    return FineTuningSettings(
        base=str(tiny_model),
        recipe=str(recipe),
        methods=METHODS,
        sizes=(2, 5),
        seeds=1,
        training=TRAINING,
        backend="transformers",
        options={"dtype": "float32", "device": "cpu"},
    )


def test_draws_are_nested_and_cells_are_planned(index: Index) -> None:
    pool = index.pool
    small, large = (drawn(pool, Cell("lora", n, 3)) for n in (4, 9))
    assert large[:4] == small
    assert len(set(large)) == 9
    assert small != drawn(pool, Cell("lora", 4, 2))
    names = [cell.name for cell in plan(METHODS, (5, 2), 2, pool)]
    assert names[:3] == ["zero-shot", "retrieved-pool", "constant-n2-seed0"]
    assert len(names) == len(set(names)) == 2 + 2 * 2 * 4
    for arguments, message in (
        ((["magic"], [2], 1), "unknown method 'magic'"),
        ((METHODS, [2, 99], 1), "fewer than the largest size, 99"),
        ((METHODS, [0], 1), "at least 1"),
        ((METHODS, [2], 0), "seeds must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(*arguments, pool)


@pytest.mark.parametrize("form", ["plain", "ica", "urial"])
def test_training_data_are_the_templates_own_form(tiny_model: Path, form: str) -> None:
    """Prompt and answer together are the prompt for the question, and what follows in a demonstration."""
    from transformers import AutoTokenizer

    template, tokenizer = Template.load(form), AutoTokenizer.from_pretrained(tiny_model)
    packer = Packer(template, Tokenizer.load(tiny_model), Pool.from_demonstrations([]))
    for one, example in zip(POOL[:3], make_examples(packer, POOL[:3], tokenizer.eos_token_id), strict=True):
        assert example.ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(example.ids[1:-1])
        prompt = packer.pack([Turn("user", one.instruction)], []).text
        answer = tokenizer.decode(example.ids[example.n_prompt : -1])
        assert tokenizer.decode(example.ids[1 : example.n_prompt]) + answer == text
        assert template.clean(answer) == one.response
        assert text.startswith(prompt[: len(prompt) - 2])
        assert text.endswith(template.closing)
        if template.middle.startswith(template.cue):
            assert text == template.preamble + template.render_demonstration(one)


@needs_trainers
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_fine_tuning_learns_responses_only(tiny_model: Path, tmp_path: Path, kind: Any) -> None:
    """The loss that trl reports first is that of the responses alone, and it falls."""
    import torch
    from transformers import AutoModelForCausalLM

    packer = Packer(Template.load("plain"), Tokenizer.load(tiny_model), Pool.from_demonstrations([]))
    one = [POOL[0]]
    still = Training(epochs=1, learning_rate=0.0, lora_learning_rate=0.0)
    cost = fine_tune(str(tiny_model), kind, packer, one, tmp_path / "still", still, seed=0)
    (example,) = make_examples(packer, one, 1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.tensor(example.ids)
    with torch.no_grad():
        logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1)
    own = -logprobs[torch.arange(len(ids) - 1), ids[1:]][example.n_prompt - 1 :].mean().item()
    assert cost.loss == pytest.approx(own, rel=1e-3)
    assert cost.n_tokens == len(ids)
    assert cost.n_response_tokens == len(ids) - example.n_prompt
    learnt = Training(epochs=12, learning_rate=3e-3, lora_learning_rate=3e-2)
    assert fine_tune(str(tiny_model), kind, packer, one, tmp_path / "tuned", learnt, seed=0).loss < 0.8 * own
    # What was saved is a whole model with its tokenizer, different from the base.
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype=torch.float32)
    with torch.no_grad():
        after = tuned(ids[None]).logits[0, :-1].log_softmax(-1)
    later = -after[torch.arange(len(ids) - 1), ids[1:]][example.n_prompt - 1 :].mean().item()
    assert later < 0.8 * own
    assert Tokenizer.load(tmp_path / "tuned").fingerprint == packer.tokenizer.fingerprint


@needs_trainers
def test_every_cell_survives_interruption(
    settings: FineTuningSettings, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = running.fine_tune, []

    def counted(*arguments: Any, **options: Any) -> Any:
        trained.append(arguments[4].name)
        return real(*arguments, **options)

    answer = running._Run._answer
    answered: list[str] = []
    stop_after = 0

    def interrupted(self: Any, cell: Cell, *rest: Any) -> None:
        if len(answered) == stop_after:
            raise GenerationError("pulled the plug")
        answer(self, cell, *rest)
        answered.append(cell.name)

    monkeypatch.setattr(running, "fine_tune", counted)
    monkeypatch.setattr(running._Run, "_answer", interrupted)
    cells = plan(METHODS, settings.sizes, 1, index.pool)
    while stop_after < len(cells):
        with pytest.raises(GenerationError, match="plug"):
            run(settings, index, QUERIES, tmp_path / "run")
        assert len(answered) == stop_after
        stop_after += 1
    results = run(settings, index, QUERIES, tmp_path / "run")
    # Nothing was done twice: a model that was trained when the plug was pulled was still there.
    assert answered == [cell.name for cell in cells] == [one.cell.name for one in results]
    assert trained == [cell.name for cell in cells if cell.method in ("lora", "full")]
    assert not list((tmp_path / "run" / "models").iterdir())
    by_name = {one.cell.name: one for one in results}
    assert by_name["zero-shot"].demonstrations == 0
    assert by_name["constant-n5-seed0"].demonstrations == by_name["retrieved-n5-seed0"].demonstrations == 5
    # The demonstration that asks what is asked is neither shown nor trained on.
    assert by_name["retrieved-pool"].demonstrations == len(POOL)
    assert by_name["full-n5-seed0"].prompt_tokens == by_name["zero-shot"].prompt_tokens
    assert all(not one.failures and None not in one.scores.values() for one in results)
    rows = [json.loads(line) for line in (tmp_path / "run/answers/full-n5-seed0.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [query.id for query in QUERIES]
    with pytest.raises(ConfigError, match="max_tokens was null and is 9"):
        run(FineTuningSettings(**{**_fields(settings), "max_tokens": 9}), index, QUERIES, tmp_path / "run")


def _fields(settings: FineTuningSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__slots__}


def result(method: Any, n: int | None, scores: list[float], seed: int | None = 0, **values: Any) -> Result:
    common = {"answer_s": 1.0, "prompt_tokens": 100.0, "output_tokens": 10.0, "demonstrations": 0.0, "training": None}
    cell = Cell(method, n, None if n is None else seed)
    return Result(cell, dict(zip("abcdef", scores, strict=False)), **{**common, **values}, failures={})


def test_cells_are_compared_by_reference_likelihood(
    settings: FineTuningSettings, index: Index, tiny_model: Path, recipe: Path, tmp_path: Path
) -> None:
    chosen = replace(settings, methods=("zero-shot", "retrieved-pool"), metric="reference-likelihood")
    zero, retrieved = run(chosen, index, QUERIES, tmp_path / "run")
    assert not zero.failures
    assert not retrieved.failures
    options = {"dtype": "float32", "device": "cpu"}
    with Aligner.from_recipe("zero-shot", model=str(tiny_model), backend="transformers", **options) as aligner:
        aligner.packer = Packer(Template.load("plain"), Tokenizer.load(tiny_model), Pool.from_demonstrations([]))
        cases = Cases("", tuple(Case(one, references=((str(one.metadata["reference"]),),)) for one in QUERIES))
        expected = {row["id"]: row["nll"] for row in measure_likelihoods(aligner, cases)}
    assert zero.scores == pytest.approx(expected, abs=1e-4)
    assert retrieved.scores != pytest.approx(expected, abs=1e-4)


def test_figures_and_break_even() -> None:
    cost = {"n_tokens": 1000, "n_response_tokens": 400, "n_steps": 10, "seconds": 30.0, "loss": 1.0}
    found = points([
        result("retrieved", 10, [1, 0, 1], answer_s=3.0, prompt_tokens=900.0),
        result("retrieved", 10, [1, 1, 1], seed=1, answer_s=3.0, prompt_tokens=900.0),
        result("lora", 10, [0, 0, 1], training=cost),
        result("zero-shot", None, [0, 0, 0]),
        result("constant", 10, [0, 0, 0], answer_s=0.5),
    ])  # fmt: skip
    assert [one.name for one in found] == ["zero-shot", "constant, 10", "retrieved, 10", "lora, 10"]
    retrieved = found[2]
    assert retrieved.quality.value == pytest.approx(5 / 6)
    assert retrieved.quality.n_prompts == 3
    assert retrieved.by_seed == pytest.approx((2 / 3, 1))
    # Three prompts without a right answer do not show that there will be none.
    assert found[0].quality.high > 0.3
    pairs = {one.in_context.name: one for one in break_even(found)}
    assert set(pairs) == {"constant, 10", "retrieved, 10"}
    # 30 s once against 2 s saved each time; 3 * 1,000 tokens against 800.
    assert (pairs["retrieved, 10"].by_seconds, pairs["retrieved, 10"].by_tokens) == (15, 4)
    assert pairs["constant, 10"].by_seconds == math.inf
    json.dumps([one.to_dict() for one in (*found, *pairs.values())], allow_nan=False)


def test_a_judge_may_score_instead(tmp_path: Path) -> None:
    from dataclasses import asdict

    from ragalign.errors import DataError
    from ragalign.judging.base import Verdict
    from ragalign.studies.fine_tuning.judged import with_verdicts

    def verdict(model: str, item: str, **values: Any) -> str:
        return json.dumps(asdict(Verdict(f"{model}/{item}", item, "p", "j", model, **values))) + "\n"

    lines = [
        verdict("lora-n10-seed0", "a", preference=1.0, swapped=False),
        verdict("lora-n10-seed0", "a", preference=0.5, swapped=True),
        verdict("lora-n10-seed0", "b", reason="no answer"),
        verdict("zero-shot", "a", scores={"score": 7.0}),
    ]
    (tmp_path / "verdicts.jsonl").write_text("".join(lines))
    results = [result("lora", 10, [0, 0, 0]), result("zero-shot", None, [0, 0])]
    lora, zero = with_verdicts(results, tmp_path)
    assert lora.scores == {"a": 0.75, "b": None, "c": None}
    assert zero.scores == {"a": 7.0, "b": None}
    with pytest.raises(DataError, match="has no verdict on full-n3-seed0: judge"):
        with_verdicts([result("full", 3, [0])], tmp_path / "verdicts.jsonl")


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_pages_say_which_scores_are_better(settings: FineTuningSettings, tmp_path: Path, lower_is_better: bool) -> None:
    found = points([result("lora", 10, [2, 3]), result("zero-shot", None, [4, 4])])
    write_pages(settings, found, [], 2, tmp_path, created=datetime.now(UTC), lower_is_better=lower_is_better)
    for name in ("compare-ift.html", "quality.svg"):
        assert ("lower is better" in (tmp_path / name).read_text(encoding="utf-8")) is lower_is_better


@given(st.floats(0.1, 100), st.floats(0.01, 10), st.floats(0.01, 10))
def test_break_even_is_the_first_query_that_pays(once: float, own: float, others: float) -> None:
    from ragalign.studies.fine_tuning.figures import _queries

    n = _queries(once, own, others)
    if others <= own:
        assert n == math.inf
    else:
        assert once + n * own <= n * others + 1e-6 * n * others
        assert n < 2 or once + (n - 1) * own > (n - 1) * others - 1e-6 * n * others


@needs_trainers
def test_the_command(
    settings: FineTuningSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ragalign = Command(monkeypatch, capsys)
    pool, prompts = tmp_path / "pool.jsonl", tmp_path / "q.jsonl"
    pool.write_text("".join(json.dumps({"instruction": d.instruction, "response": d.response}) + "\n" for d in POOL))
    prompts.write_text("".join(json.dumps({"id": q.id, "instruction": q.text, **q.metadata}) + "\n" for q in QUERIES))
    arguments = ["compare-ift", "--base", settings.base, "--pool", pool, "--queries", prompts, "--seeds", "1"]
    arguments += [
        "--size",
        "3",
        "--method",
        "zero-shot",
        "--method",
        "retrieved",
        "--method",
        "full",
        "--recipe",
        settings.recipe,
    ]
    arguments += ["--backend", "transformers", "--epochs", "1", "--out", tmp_path / "run"]
    done = ragalign(*arguments)
    assert done.returncode == 0, done.stderr
    assert "retrieved" in done.stdout
    page = (tmp_path / "run" / "compare-ift.html").read_text()
    assert "When fine-tuning pays" in page
    assert "full, 3" in page
    assert (tmp_path / "run" / "quality.svg").read_text().startswith("<svg")
    shown = json.loads(ragalign(*arguments, "--json").stdout)
    assert [one["method"] for one in shown["points"]] == ["zero-shot", "retrieved", "full"]
    assert np.isfinite(shown["points"][2]["training_seconds"])
    for change, message in ((["--size", "x"], "'--size'"), (["--metric", "magic"], "no metric 'magic'")):
        done = ragalign(*arguments, *change)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@needs_trainers
def test_loading_the_trainers_leaves_the_environment_alone() -> None:
    """One of them sets how much vLLM talks; in a fresh process, since imports happen once."""
    script = (
        "import os\nfrom ragalign.studies.fine_tuning.training import load_trainers\n"
        "load_trainers()\nprint(os.environ.get('VLLM_LOGGING_LEVEL'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_LOGGING_LEVEL"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "None\n"
