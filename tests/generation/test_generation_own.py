"""A generator that somebody else wrote against the public protocol, and the options of vLLM's engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fixtures.live import LiveApp

from ragalign import Aligner, Completion, Decoding, Generator, Prompt
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError
from ragalign.generation import EngineOptions, VllmGenerator
from ragalign.generation._vllm_start import fill_in
from ragalign.generator import ClosableIterator
from ragalign.indexes import Index
from ragalign.planning import PlannerSettings
from ragalign.recipes import Recipe
from ragalign.serving import create_app
from ragalign.types import Delta, Output


class Counter:
    """Counts the words of a prompt; knows nothing of ragalign but `ragalign.types`."""

    model = "counter"
    context_length = 2048
    shares_cpu = False

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
        return [completion for _, completion in self.iter_generate(prompts, decoding)]

    def iter_generate(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        for position, prompt in enumerate(prompts):
            yield position, Completion(prompt, (Output(self._answer(prompt), "stop", 3),), n_cached_tokens=0)

    def stream(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        first, _, rest = self._answer(prompt).partition(" ")
        yield Delta(first)
        yield Delta(f" {rest}", 3, "stop", 0)

    def reset_prefix_cache(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def _answer(self, prompt: Prompt) -> str:
        return f"You asked with {len(prompt.text.split())} words."


@pytest.fixture
def aligner(starter_index: Path, tiny_model: Path, minilm: Encoder) -> Aligner:
    counter: Generator = Counter()
    index = Index.open(starter_index, encoder=minilm)
    return Aligner.from_recipe("ica", index=index, model=counter, tokenizer=tiny_model)


def test_the_aligner_takes_any_generator(aligner: Aligner) -> None:
    completion = aligner.chat("How do I bake bread?")
    assert completion.text
    assert "".join(delta.text for delta in aligner.stream("How do I bake bread?")) == completion.text
    assert [one.text for one in aligner.generate(["How do I bake bread?"] * 2)] == [completion.text] * 2


def test_streams_teach_the_planner_as_chat_does(starter_index: Path, tiny_model: Path, minilm: Encoder) -> None:
    index = Index.open(starter_index, encoder=minilm)
    recipe = replace(Recipe.load("ica"), planner=PlannerSettings("relax"))
    ways: list[Callable[[Aligner, str], object]] = [
        lambda aligner, text: aligner.chat(text),
        lambda aligner, text: list(aligner.stream(text)),
        lambda aligner, text: aligner.pack(text),  # learns nothing
    ]
    held = []
    for ask in ways:
        aligner = Aligner.from_recipe(recipe, index=index, model=Counter(), tokenizer=tiny_model)
        for text in ("How do I bake bread?", "Why is the sky blue?", "How do I bake bread?", "Why is the sky blue?"):
            ask(aligner, text)
        held.append(aligner.online.memory.n_tokens)
    assert held[0] == held[1] < held[2]


def test_the_service_takes_any_generator(aligner: Aligner) -> None:
    pytest.importorskip("fastapi", reason="needs the `serve` extra")
    body = {"model": "counter", "messages": [{"role": "user", "content": "How do I bake bread?"}]}
    for app in (create_app(aligner), create_app(aligner, generator=aligner.generator)):
        with LiveApp(app) as live:
            answer = httpx.post(f"{live.url}/v1/chat/completions", json=body, trust_env=False)
        assert answer.json()["choices"][0]["message"]["content"] == aligner.chat("How do I bake bread?").text


def test_engine_options_replace_and_pass_on() -> None:
    options = EngineOptions(dtype="float32").with_changes(max_model_len=512, kv_cache_memory_bytes=7)
    assert (options.dtype, options.max_model_len, options.extra) == ("float32", 512, {"kv_cache_memory_bytes": 7})
    arguments = options.with_changes(dtype="auto").arguments("m", None)
    assert arguments["kv_cache_memory_bytes"] == 7
    assert arguments["dtype"] == "auto"
    assert "extra" not in arguments


def test_engine_options_reach_vllm_as_its_own_types() -> None:
    config = pytest.importorskip("vllm.config", reason="needs the `cpu` or `gpu` extra")
    options = EngineOptions(kv_transfer_config={"kv_connector": "ExampleConnector", "kv_role": "kv_both"})
    arguments = options.arguments("m", None)
    with ExitStack() as stack:
        fill_in(arguments, stack)
    made = arguments["kv_transfer_config"]
    assert isinstance(made, config.KVTransferConfig)
    assert made.kv_connector == "ExampleConnector"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be 1 or more, not 0"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be above 0 and at most 1, not 1.5"),
        ({"max_model_len": 0}, "max_model_len must be 1 or more, not 0"),
    ],
)
def test_values_out_of_range_are_refused_at_once(tiny_model: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VllmGenerator(tiny_model, **options)


def test_an_option_is_not_given_twice() -> None:
    with pytest.raises(ConfigError, match="extra: dtype has its own option"):
        EngineOptions(extra={"dtype": "auto"})
