"""The service over the session's real engine, and as the command with an engine of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from fixtures.live import LiveApp, LiveCommand
from fixtures.scripted_server import ScriptedServer

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.generation import VllmGenerator
from ragalign.indexes import Index
from ragalign.serving import ServingSettings, create_app
from ragalign.tokenization import Tokenizer

pytest.importorskip("fastapi", reason="needs the `serve` extra")

RECIPES = ("ica", "urial", "zero-shot")


@pytest.fixture(scope="session")
def make_aligners(starter_index: Path, tiny_model: Path, minilm: Encoder) -> Callable[..., dict[str, Aligner]]:
    """Makes the aligners that are served; the tokenizer and the encoder are loaded once."""
    tokenizer = Tokenizer.load(tiny_model)

    def make(index: Path = starter_index, generator: Any = None) -> dict[str, Aligner]:
        opened = Index.open(index, encoder=minilm)
        return {
            name: Aligner.from_recipe(name, index=opened, model=generator, tokenizer=tokenizer, context_length=2048)
            for name in RECIPES
        }

    return make


@pytest.fixture(scope="session")
def live(make_aligners: Callable[..., dict[str, Aligner]], vllm_engine: VllmGenerator) -> Iterator[LiveApp]:
    """The service in this process, over the session's engine."""
    aligners = make_aligners(generator=vllm_engine)
    with LiveApp(create_app(aligners["ica"], recipes=aligners, name="tiny", load=make_aligners)) as running:
        yield running


@pytest.fixture(scope="session")
def command(starter_index: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCommand]:
    """``ragalign serve`` with vLLM's asynchronous engine; for slow tests."""
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    log = tmp_path_factory.mktemp("serve") / "log"
    arguments = (starter_index, "--model", tiny_model, "--name", "tiny", "--dtype", "float32", "--max-running", 16)
    with LiveCommand(log, *arguments, environment={"VLLM_CPU_KVCACHE_SPACE": "1"}) as running:
        yield running


@pytest.fixture(params=["bridge", pytest.param("engine", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> str:
    """The service's address, over either engine."""
    found: str = request.getfixturevalue("live" if request.param == "bridge" else "command").url
    return found


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


class UpstreamService:
    """The service in front of scripted completion servers."""

    def __init__(self, make: Callable[..., dict[str, Aligner]]) -> None:
        self._make = make

    def __call__(
        self,
        *servers: ScriptedServer | str,
        settings: ServingSettings | None = None,
        timeout_s: float = 20.0,
        affinity: Literal["prefix", "none"] = "prefix",
        **more: Any,
    ) -> LiveApp:
        from ragalign.generation.upstream import Upstream

        urls = [server if isinstance(server, str) else server.base_url for server in servers]
        options: dict[str, Any] = {"context_length": 2048, "check_every_s": 0.1, "affinity": affinity}
        upstream = Upstream(urls, model="m", timeout_s=timeout_s, **options)
        aligners = self._make()
        served: Mapping[str, Any] = {"recipes": aligners, "name": "tiny", "settings": settings, **more}
        return LiveApp(create_app(aligners["zero-shot"], generator=upstream, **served))


@pytest.fixture(scope="session")
def upstream_service(make_aligners: Callable[..., dict[str, Aligner]]) -> UpstreamService:
    return UpstreamService(make_aligners)
