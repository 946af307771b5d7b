from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ragalign import generation
from ragalign.errors import ConfigError
from ragalign.generation import OpenAIGenerator, TransformersGenerator, VllmGenerator, make_generator
from ragalign.generator import Generator


def test_urls_and_openai_make_endpoint_generators() -> None:
    by_url = make_generator("http://localhost:8000/v1", model="tiny", concurrency=3, context_length=4096)
    by_name = make_generator("openai", model="tiny", base_url="https://example.org/v1")
    assert isinstance(by_url, OpenAIGenerator)
    assert isinstance(by_name, OpenAIGenerator)
    assert (by_url.model, by_url.context_length) == ("tiny", 4096)


def test_transformers_by_name(tiny_model: Path) -> None:
    generator: Generator = make_generator("transformers", model=str(tiny_model), device="cpu", batch_size=2)
    assert isinstance(generator, TransformersGenerator)
    assert (generator.model, generator.context_length) == (str(tiny_model), 2048)


def test_auto_prefers_vllm_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(VllmGenerator, "__init__", lambda self, model: chosen.append(("vllm", model)))
    monkeypatch.setattr(TransformersGenerator, "__init__", lambda self, model: chosen.append(("transformers", model)))
    for installed in (True, False):
        monkeypatch.setattr("ragalign.generation.factory.is_installed", lambda name, answer=installed: answer)
        make_generator(model="tiny")
    assert chosen == [("vllm", "tiny"), ("transformers", "tiny")]


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("vllama", {}, "no generator 'vllama'; use auto, vllm, transformers, openai, or the URL"),
        (
            "transformers",
            {"block_size": 16},
            "the transformers generator has no option 'block_size'; its options: tokenizer",
        ),
        ("http://localhost/v1", {"device": "cpu"}, "the openai generator has no option 'device'"),
        ("openai", {}, "the openai generator needs base_url"),
    ],
)
def test_wrong_names_and_options(backend: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_generator(backend, model="tiny", **options)


def test_public_names_exist_and_others_do_not() -> None:
    assert sorted(generation.__all__) == sorted(generation._HOME)
    assert all(getattr(generation, name) is not None for name in generation.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = generation.Nothing


def test_importing_loads_no_engine() -> None:
    code = (
        "import sys; from ragalign.generation import *; "
        "print([name for name in ('torch', 'transformers', 'vllm', 'openai', 'tokenizers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
