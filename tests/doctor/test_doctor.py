"""The doctor finds what is broken in a model, a recipe and an index, and finds nothing in sound ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.command import Command

from ragalign.doctor import Check, examine
from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.models.cache import CONVERSION_MANIFEST
from ragalign.pool import Pool
from ragalign.recipes import data_folder

SHORT = """
[template]
form = "plain"
[retriever]
name = "none"
[decoding]
max_tokens = 100
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that fits into the tiny model's context."""
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return path


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to break."""
    return shutil.copytree(tiny_model, tmp_path / "broken")


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def found(model: Path, **options: Any) -> dict[str, Check]:
    return {check.name: check for check in examine(model, n_answers=1, max_new_tokens=8, **options).checks}


def test_a_sound_model_passes_every_check(tiny_model: Path, recipe: Path) -> None:
    checks = found(tiny_model, recipe=recipe)
    assert {name: check.status for name, check in checks.items() if name not in ("stops", "versions")} == dict.fromkeys(
        ("tokenizer", "kind", "special-tokens", "memory", "context", "joins", "bos"), "ok"
    )
    assert checks["stops"].status in ("ok", "warning")  # random weights stop by chance
    assert "the tokenizer adds one" in checks["bos"].detail
    assert "GB in float32" in checks["memory"].detail


def test_a_tokenizer_that_lost_its_bos(broken: Path, recipe: Path) -> None:
    change(broken / "tokenizer.json", lambda content: content.update(post_processor=None))
    checks = found(broken, recipe=recipe)
    assert checks["bos"].status == "warning"
    assert "adds none" in checks["bos"].detail
    change(broken / "tokenizer_config.json", lambda content: content.update(add_bos_token=True))
    check = found(broken, recipe=recipe, weights=False)["bos"]
    assert check.status == "wrong"
    assert check.detail.startswith("the configuration asks for BOS; the tokenizer adds none")


def test_a_context_that_is_too_short(broken: Path, recipe: Path) -> None:
    assert found(broken, recipe="ica", weights=False)["context"].status == "warning"
    change(broken / "config.json", lambda content: content.update(max_position_embeddings=256))
    check = found(broken, recipe="ica", weights=False)["context"]
    assert check.status == "wrong"
    assert check.detail.startswith("256 tokens, but the recipe 'ica' asks for")
    assert found(broken, recipe=recipe, weights=False)["context"].status == "wrong"


def test_a_chat_tuned_model(broken: Path, recipe: Path) -> None:
    (broken / "chat_template.jinja").write_text("<|im_start|>{{ messages[0]['content'] }}<|im_end|>")
    checks = examine(broken, recipe=recipe, weights=False).checks
    assert [check.status for check in checks if check.name == "kind"] == ["warning"]
    (missing,) = [check for check in checks if check.name == "special-tokens" and check.status == "wrong"]
    assert missing.detail == "the chat template needs <|im_end|>, <|im_start|>, which the tokenizer lacks"


@pytest.mark.parametrize(
    ("opening", "message"),
    [("<|im_start|>user: ", "needs <|im_start|>, which"), ("<|begin_of_text|>User: ", "are plain text; use")],
)
def test_special_tokens_in_a_template(tiny_model: Path, tmp_path: Path, opening: str, message: str) -> None:
    form, path = tmp_path / "form.toml", tmp_path / "recipe.toml"
    form.write_text(f'opening = "{opening}"\nmiddle = "\\n\\nAnswer: "\nclosing = "\\n\\n"\n')
    path.write_text(SHORT.replace('"plain"', '"form.toml"'))
    checks = examine(tiny_model, recipe=path, weights=False).checks
    (check,) = [check for check in checks if check.name == "special-tokens"]
    assert check.status == "wrong"
    assert message in check.detail


def test_a_tokenizer_of_another_model(broken: Path, recipe: Path) -> None:
    change(broken / "config.json", lambda content: content.update(vocab_size=300))
    check = found(broken, recipe=recipe, weights=False)["tokenizer"]
    assert check.status == "wrong"
    assert "they do not belong together" in check.detail


def test_weights_that_cannot_be_loaded(broken: Path, recipe: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"no weights")
    checks = found(broken, recipe=recipe)
    assert checks["bos"].status == checks["stops"].status == "wrong"
    assert "could not load" in checks["stops"].detail


def test_an_index_with_another_encoder(
    tiny_model: Path, recipe: Path, minilm: Encoder, minilm_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(minilm_folder, tmp_path / "encoder")
    pool = Pool.load(data_folder() / "starter.jsonl")
    Index.build(pool, Encoder.load(copy, cache=None)).save(tmp_path / "index")
    checks = found(tiny_model, recipe=recipe, index=tmp_path / "index", weights=False)
    assert checks["index"].status == "ok"
    assert checks["encoder"].status in ("ok", "warning")
    change(copy / "config.json", lambda content: content.update(hidden_act="relu"))
    other = found(tiny_model, recipe=recipe, index=tmp_path / "index", weights=False)["encoder"]
    assert other.status == "wrong"
    (tmp_path / "index" / "manifest.json").write_text("{")
    assert found(tiny_model, recipe=recipe, index=tmp_path / "index", weights=False)["index"].status == "wrong"


def test_texts_that_the_encoder_cuts(tiny_model: Path, recipe: Path, minilm: Encoder, tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"instruction": "why " * 1000, "response": "yes"}) + "\n")
    Index.build(Pool.load(pool), minilm).save(tmp_path / "index")
    check = found(tiny_model, recipe=recipe, index=tmp_path / "index", weights=False)["encoder"]
    assert check.status == "warning"
    assert "1 of 1 texts are longer" in check.detail


def test_the_command(ragalign: Command, broken: Path, recipe: Path) -> None:
    done = ragalign("doctor", broken, "--recipe", recipe, "--no-weights", "--json")
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert set(report) == {"model", "checks"}
    assert report["model"] == str(broken)
    assert all(set(check) == {"name", "status", "detail"} for check in report["checks"])
    change(broken / "config.json", lambda content: content.update(vocab_size=300))
    done = ragalign("doctor", broken, "--recipe", recipe, "--no-weights")
    assert done.returncode == 1
    assert "wrong" in done.stdout
    assert all(line.startswith(("ok ", "warning ", "wrong ")) for line in done.stdout.splitlines())
    assert ragalign("doctor", broken / "missing").returncode == 2


def test_long_findings_keep_their_column_on_a_terminal(
    ragalign: Command, broken: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    done = ragalign("doctor", broken, "--recipe", recipe, "--no-weights", columns=80)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert all(re.match(r"(ok|warning) +[a-z-]+ | {20}", line) for line in lines)


def test_bos_of_a_converted_model(broken: Path, recipe: Path) -> None:
    (broken / CONVERSION_MANIFEST).write_text("{}")
    detail = found(broken, recipe=recipe, weights=False)["bos"].detail
    assert detail.startswith("the GGUF file asks for BOS; the tokenizer adds one")
