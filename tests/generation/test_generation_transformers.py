from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation import TransformersGenerator
from ragalign.generation._sampling import sampler
from ragalign.types import Decoding, Prompt

PromptMaker = Callable[..., Prompt]
GREEDY = Decoding(max_tokens=24)
NOISY = Decoding(max_tokens=40, temperature=2.0, seed=3)  # its outputs hold parts of characters
QUESTIONS = ["How do I boil an egg?", "Name three rivers.", "Hi", "Crème brûlée, 你好 🙂?", "A list is mutable and"]


def scores_of(decoding: Decoding, ids: list[list[int]], mask: list[list[int]], logits: torch.Tensor) -> torch.Tensor:
    prompt_mask = torch.tensor(mask)
    return sampler(decoding, prompt_mask, [None] * len(ids))(torch.tensor(ids), logits.clone())


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    ids = [[1, 2, 3, 4, 4], [5, 6, 7, 8, 9]]
    ours = scores_of(Decoding(repetition_penalty=1.3), ids, [[1, 1, 1]] * 2, logits)
    torch.testing.assert_close(ours, RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(ids), logits.clone()))


def test_padding_is_not_penalised() -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    decoding = Decoding(repetition_penalty=1.3)
    padded = scores_of(decoding, [[0, 0, 5, 6, 7]], [[0, 0, 1, 1]], logits)
    torch.testing.assert_close(padded, scores_of(decoding, [[5, 6, 7]], [[1, 1]], logits))
    assert padded[0, 0] == logits[0, 0]


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = torch.zeros(1, 6)
    decoding = Decoding(presence_penalty=0.5, frequency_penalty=0.25)
    assert scores_of(decoding, [[1, 2, 3, 3, 4]], [[1, 1]], logits).tolist() == [[0, 0, 0, -1.0, -0.75, 0]]


@pytest.mark.parametrize("top_p", [0.2, 0.7, 0.95, 1.0])
def test_draws_follow_the_distribution_that_transformers_defines(top_p: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    temperature, draws = 0.8, 6000
    expected = TopPLogitsWarper(top_p)(None, logits / temperature).softmax(-1)[0]
    drawn = sampler(Decoding(temperature=temperature, top_p=top_p), torch.ones(draws, 1), list(range(draws)))(
        torch.zeros(draws, 1, dtype=torch.long), logits.expand(draws, -1)
    ).argmax(-1)
    counts = torch.bincount(drawn, minlength=6)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    if kept.sum() > 1:
        assert chisquare(counts[kept].numpy(), (expected[kept] * draws).numpy(), sum_check=False).pvalue > 1e-4


def test_greedy_equals_a_plain_argmax_loop(
    transformers_engine: TransformersGenerator, tiny_model: Path, make_prompt: PromptMaker
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32").eval()
    prompts = [make_prompt(question) for question in QUESTIONS]
    completions = transformers_engine.generate(prompts, GREEDY)
    tokenizer = transformers_engine._tokenizer
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = prompt.token_ids
        with torch.inference_mode():
            for _ in range(GREEDY.max_tokens):
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        assert completion.text == tokenizer.decode(ids[len(prompt.ids) :])
        assert (completion.finish_reason, completion.n_output_tokens) == ("length", GREEDY.max_tokens)


@pytest.mark.parametrize("decoding", [GREEDY, NOISY, replace(NOISY, repetition_penalty=1.2)], ids=["T0", "T2", "rp"])
def test_an_answer_does_not_depend_on_its_batch(
    transformers_engine: TransformersGenerator, make_prompt: PromptMaker, decoding: Decoding
) -> None:
    prompts = [make_prompt(question) for question in QUESTIONS]
    together = transformers_engine.generate(prompts, decoding)
    alone = [transformers_engine.generate([prompt], decoding)[0] for prompt in prompts]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.prompt for one in together] == prompts


def test_samples_are_seeded_one_by_one(transformers_engine: TransformersGenerator, make_prompt: PromptMaker) -> None:
    prompt = make_prompt("Name three rivers.")
    (three,) = transformers_engine.generate([prompt], replace(NOISY, n=3, seed=10))
    (second,) = transformers_engine.generate([prompt], replace(NOISY, seed=11))
    assert len({output.text for output in three.outputs}) == 3
    assert three.outputs[1] == second.outputs[0]
    (unseeded, other) = (transformers_engine.generate([prompt], replace(NOISY, seed=None))[0] for _ in range(2))
    assert unseeded.text != other.text


@pytest.mark.parametrize("decoding", [GREEDY, NOISY], ids=["T0", "T2"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_stream_equals_generate(
    transformers_engine: TransformersGenerator, make_prompt: PromptMaker, question: str, decoding: Decoding
) -> None:
    whole = transformers_engine.generate([make_prompt(question)], decoding)[0].text
    assert whole
    # Whatever the text holds, take something from its middle as the stop string.
    for prompt in (make_prompt(question), make_prompt(question, stop=(whole[10:13],))):
        deltas = list(transformers_engine.stream(prompt, decoding))
        completion = transformers_engine.generate([prompt], decoding)[0]
        assert "".join(delta.text for delta in deltas) == completion.text
        reasons = [delta.finish_reason for delta in deltas]
        assert reasons == [None] * (len(deltas) - 1) + [completion.finish_reason]
        assert not any(stop in completion.text for stop in prompt.stop)
        assert completion.finish_reason == ("stop" if prompt.stop else "length")


def test_end_of_text_ends_an_answer(transformers_engine: TransformersGenerator, make_prompt: PromptMaker) -> None:
    # At a high temperature one in a few hundred tokens is EOS.
    prompt = make_prompt("Hi")
    outputs = transformers_engine.generate([prompt], replace(NOISY, max_tokens=300, n=12))[0].outputs
    ended = [output for output in outputs if output.finish_reason == "stop"]
    assert ended
    assert all(output.n_tokens < 300 and "<|end_of_text|>" not in output.text for output in ended)
    assert all(output.n_tokens == 300 for output in outputs if output.finish_reason == "length")


def test_answers_end_where_the_context_does(
    transformers_engine: TransformersGenerator, make_prompt_of: Callable[[int, int], Prompt]
) -> None:
    prompts = [make_prompt_of(length, length) for length in (2040, 2047, 100)]
    completions = transformers_engine.generate(prompts, GREEDY)
    assert [one.n_output_tokens for one in completions] == [8, 1, 24]
    assert {one.finish_reason for one in completions} == {"length"}
    with pytest.raises(GenerationError, match="prompt 2 of 2 has 2,048 tokens"):
        transformers_engine.generate([prompts[0], make_prompt_of(2048, 0)], GREEDY)


def test_the_models_own_generation_config_is_ignored(
    transformers_engine: TransformersGenerator, tiny_model: Path, tmp_path: Path, make_prompt: PromptMaker
) -> None:
    folder = tmp_path / "opinionated"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 1.9, "top_k": 3, "repetition_penalty": 1.8, "max_new_tokens": 2}'
    )
    with TransformersGenerator(folder, dtype="float32", device="cpu") as opinionated:
        ours = opinionated.generate([make_prompt("Name three rivers.")], GREEDY)
    assert ours[0].text == transformers_engine.generate([make_prompt("Name three rivers.")], GREEDY)[0].text


def test_closing_a_stream_ends_its_thread(transformers_engine: TransformersGenerator, make_prompt: PromptMaker) -> None:
    stream = transformers_engine.stream(make_prompt("Hi"), replace(GREEDY, max_tokens=1500))
    next(stream)
    stream.close()
    assert len(list(transformers_engine.generate([make_prompt("Hi")], GREEDY))) == 1


def test_wrong_arguments(tiny_model: Path, tmp_path: Path, make_prompt: PromptMaker) -> None:
    with pytest.raises(ConfigError, match="no model folder"):
        TransformersGenerator(tmp_path / "missing")
    with pytest.raises(GenerationError, match=r"transformers could not load .*: "):
        TransformersGenerator(tmp_path)
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        TransformersGenerator(tiny_model, batch_size=0)
    closed = TransformersGenerator(tiny_model, device="cpu")
    closed.close()
    with pytest.raises(GenerationError, match="is closed"):
        closed.generate([make_prompt("Hi")], GREEDY)


def test_loading_prints_nothing_where_nobody_watches(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    TransformersGenerator(tiny_model, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
