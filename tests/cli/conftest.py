"""The command line for all of its tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.command import Command, repeated

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.types import Demonstration


@pytest.fixture
def ragalign(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `ragalign` in this process."""
    return Command(monkeypatch, capsys)


DECODING = ("--backend", "transformers", "--max-new-tokens", "4", "--temperature", "0")
SMALL = "[packing]\nmax_demonstrations = 2\nmax_tokens = 1500\n"


@pytest.fixture
def bench_prompts(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    rows = [{"id": f"q{n}", "instruction": f"Tell me about {n}.", "reference": ["yes", f"no {n}"]} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def short_index(minilm: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index over demonstrations that even the tiny model's tokenizer keeps short."""
    folder = tmp_path_factory.mktemp("short") / "index"
    pool = [Demonstration(f"Tell me about {n}.", f"It is {n}.") for n in range(2, 14)]
    Index.build(Pool.from_demonstrations(pool), minilm).save(folder)
    return folder


@pytest.fixture
def bench_recipes(tmp_path: Path) -> list[str]:
    """No demonstrations, one constant, one retrieved, one random."""
    one = tmp_path / "one.jsonl"
    one.write_text('{"instruction": "Name a river.", "response": "The Nile."}\n')
    texts = {
        "fixed": '[constants]\nfile = "one.jsonl"\n[retriever]\nname = "none"\n',
        "mine": f'[retriever]\nname = "dense"\n{SMALL}',
        "drawn": f'[retriever]\nname = "random"\n{SMALL}',
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
    return ["zero-shot", *(str(tmp_path / f"{name}.toml") for name in texts)]


@pytest.fixture
def bench_arguments(
    bench_recipes: list[str], bench_prompts: Path, tiny_model: Path, short_index: Path
) -> tuple[object, ...]:
    chosen = (
        *repeated("--recipe", bench_recipes),
        "--queries",
        bench_prompts,
        "--model",
        tiny_model,
        "--index",
        short_index,
    )
    return ("bench", *chosen, *DECODING)
