"""The testbed's parts as they ship: data, tokenizer and model are what the scripts in benchmarks/testbed make."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.recipes import data_folder
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Hit, Turn

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = data_folder() / "testbed"
MODEL = FOLDER / "model"
LOG = json.loads((PROJECT / "benchmarks" / "results" / "testbed_training.json").read_text(encoding="utf-8"))
MODULES = ("world", "tokenizer", "model", "train", "write_data")


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The modules of benchmarks/testbed; their plain names are gone again afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "benchmarks" / "testbed"))
        found: dict[str, ModuleType] = {name: importlib.import_module(name) for name in MODULES}
        yield SimpleNamespace(**found)
        for name in MODULES:
            del sys.modules[name]


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def style_of(answer: str, world: Any) -> tuple[int, int, int]:
    """What an answer says, read back from its text."""
    first, second, *_, last = answer.split("\n")
    return (
        world.OPENINGS.index(first.split(" ", 1)[1]),
        [word for word, _, _ in world.RULES].index(re.split(r"[ :]", second)[2]),
        world.SIGN_OFFS.index(last.split(" ", 1)[1]),
    )


def aspects_of(instruction: str, world: Any) -> frozenset[str]:
    # Behind the first colon, comma or verb, and before the topic's second mention, stand the three aspects.
    found = re.search(r"(\w+), (\w+) and (\w+) of ", instruction)
    assert found is not None
    assert set(found.groups()) <= set(world.ASPECTS)
    return frozenset(found.groups())


def test_the_scripts_write_the_data_that_ships(scripts: SimpleNamespace, tmp_path: Path) -> None:
    scripts.write_data.write(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in FOLDER.glob("*.jsonl"))
    for name in names:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


@pytest.mark.parametrize(("prefix", "n_pool", "n_queries"), [("", 2000, 200), ("dev_", 500, 100)])
def test_a_topic_has_one_style_and_queries_are_not_in_the_pool(
    scripts: SimpleNamespace, prefix: str, n_pool: int, n_queries: int
) -> None:
    pool, queries = rows(f"{prefix}pool.jsonl"), rows(f"{prefix}queries.jsonl")
    assert (len(pool), len(queries)) == (n_pool, n_queries)
    style = {row["topic"]: style_of(row["response"], scripts.world) for row in pool}
    assert all(style_of(row["response"], scripts.world) == style[row["topic"]] for row in pool)
    assert all(style_of(row["reference"], scripts.world) == style[row["topic"]] for row in queries)
    assert len({row["instruction"] for row in [*pool, *queries]}) == n_pool + n_queries
    assert len({row["id"] for row in [*pool, *queries]}) == n_pool + n_queries


def test_worlds_share_neither_styles_nor_aspects(scripts: SimpleNamespace) -> None:
    world = scripts.world
    styles, aspects = {}, {}
    for split, prefix in (("test", ""), ("dev", "dev_")):
        pool, queries = rows(f"{prefix}pool.jsonl"), rows(f"{prefix}queries.jsonl")
        styles[split] = {style_of(row["response"], world) for row in pool}
        aspects[split] = {aspects_of(row["instruction"], world) for row in [*pool, *queries]}
    rng = random.Random(0)
    drawn = []
    for _ in range(300):
        topics = rng.sample(range(len(world.TOPICS)), 10)
        drawn += world.draw_pairs(rng, world.draw_styles(rng, topics, "train"), topics, "train")
    styles["train"] = {style_of(pair.response, world) for pair in drawn}
    aspects["train"] = {aspects_of(pair.instruction, world) for pair in drawn}
    for one, other in (("test", "dev"), ("test", "train"), ("dev", "train")):
        assert styles[one].isdisjoint(styles[other])
        assert aspects[one].isdisjoint(aspects[other])
    # Every part of a style occurs in training: what is new in the test world is how they go together.
    for part in range(3):
        assert {style[part] for style in styles["test"]} <= {style[part] for style in styles["train"]}


def test_the_weights_are_those_of_the_committed_training() -> None:
    weights = (MODEL / "model.safetensors").read_bytes()
    assert len(weights) <= 4_000_000
    assert hashlib.sha256(weights).hexdigest() == LOG["model_sha256"]


def test_the_config_reads_the_same_with_older_transformers() -> None:
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert json.loads((MODEL / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def test_the_tokenizer_is_the_one_that_the_script_builds(scripts: SimpleNamespace, tokenizer: Any) -> None:
    built = scripts.tokenizer.build_tokenizer(tokenizer.model_max_length)
    assert json.loads(built.backend_tokenizer.to_str()) == json.loads(tokenizer.backend_tokenizer.to_str())


def test_the_tokenizer_gives_the_worlds_texts_back_in_whole_words(tokenizer: Any) -> None:
    texts = [
        row[field]
        for name in ("pool.jsonl", "queries.jsonl", "dev_pool.jsonl", "dev_queries.jsonl")
        for row in rows(name)
        for field in ("instruction", "response", "reference")
        if field in row
    ]
    found = tokenizer(texts, add_special_tokens=False).input_ids
    assert tokenizer.batch_decode(found) == texts
    # Words, signs and line breaks are a piece each (arrows two, with their space), so no word was spelt in bytes.
    pieces = re.compile(r"[A-Za-z]+|[0-9]+| (?=>)|[^\sA-Za-z0-9]+|\n+")
    assert all(len(ids) == len(pieces.findall(text)) for ids, text in zip(found, texts, strict=True))


@given(text=st.text())
def test_the_tokenizer_gives_any_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(Tokenizer.wrap(tokenizer).encode(text)) == text


def test_prompts_of_parts_are_the_prompts_of_the_whole(tokenizer: Any) -> None:
    # Joins that are not proven safe would be a warning here, and warnings are errors.
    pool = Pool.load(FOLDER / "pool.jsonl")
    packer = Packer(
        Template.load(FOLDER / "template.toml"), Tokenizer.load(MODEL), pool, packing=Packing(16, max_tokens=10**6)
    )
    rng = random.Random(0)
    for query in rows("queries.jsonl")[:20]:
        hits = [Hit(one.id, -rank, rank) for rank, one in enumerate(rng.sample(list(pool), 16), 1)]
        prompt = packer.pack([Turn("user", query["instruction"])], hits)
        assert list(prompt.token_ids) == tokenizer(prompt.text).input_ids
        assert len(prompt.demonstrations) == 16


def test_prompts_have_the_form_of_the_training_documents(scripts: SimpleNamespace) -> None:
    pool = Pool.load(FOLDER / "dev_pool.jsonl")
    packer = Packer(Template.load(FOLDER / "template.toml"), Tokenizer.load(MODEL), pool)
    chosen = list(pool)[:3]
    prompt = packer.pack([Turn("user", "Tell me.")], [Hit(one.id, -rank, rank) for rank, one in enumerate(chosen, 1)])
    pairs = [scripts.world.Pair(one.instruction, one.response, "") for one in reversed(chosen)]
    asked = scripts.world.render(scripts.world.Pair("Tell me.", "", "")).removesuffix("\n\n")
    assert prompt.text == "".join(scripts.world.render(pair) for pair in pairs) + asked


def test_the_exported_model_looks_topics_up_as_the_log_says(scripts: SimpleNamespace, tokenizer: Any) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = scripts.model.Llama(scripts.model.Shape(len(tokenizer)))
    weights = load_file(MODEL / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    words = scripts.train.Words(tokenizer)
    exact, style = scripts.train.held_out(model, tokenizer, words)
    assert (exact, style) == pytest.approx((LOG["log"][-1]["exact"], LOG["log"][-1]["style"]), abs=0.05)

    # The class that trained and the class that everybody loads are one model.
    ids, _ = scripts.train.document_batch(
        random.Random(0), tokenizer, words, [scripts.train.one_in_eight(random.Random(0))], "dev"
    )
    loaded = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.logits(model(ids)), atol=1e-3, rtol=1e-3)
