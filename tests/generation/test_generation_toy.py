from __future__ import annotations

from pathlib import Path

from fixtures.tiny_model import TEXTS, build_tiny_model
from transformers import AutoConfig, AutoTokenizer

from ragalign.generation import TransformersGenerator, build_toy_model
from ragalign.types import Decoding


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_same_seed_gives_the_same_files(tiny_model: Path, tmp_path: Path) -> None:
    assert files_of(build_tiny_model(tmp_path / "again")) == files_of(tiny_model)
    other = files_of(build_toy_model(tmp_path / "other", TEXTS * 4, seed=1, vocab_size=768, context_length=2048))
    changed = {name for name, content in files_of(tiny_model).items() if other[name] != content}
    assert changed == {"model.safetensors"}


def test_tokenizer_adds_bos_and_round_trips_everything(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for text in [*TEXTS, " leading", "tab\tand\r\nnewlines\n\n\n", "1234567", "👩‍👩‍👧 \u202eabc\x00"]:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in ids[1:]
        assert tokenizer.decode(ids[1:]) == text
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("1234567 I'll go.\n\nSo")] == [
        "123",
        "456",
        "7",
        "ĠI",
        "'ll",
        "Ġgo",
        ".ĊĊ",
        "So",
    ]


def test_config_says_what_was_asked_for(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(build_toy_model(tmp_path, TEXTS, context_length=8192))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (config.max_position_embeddings, config.vocab_size) == (8192, len(tokenizer))
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len(tokenizer) <= 1024


def test_greedy_output_is_readable(transformers_engine: TransformersGenerator, make_prompt) -> None:
    completions = transformers_engine.generate([make_prompt(text) for text in TEXTS], Decoding(max_tokens=100))
    for completion in completions:
        assert completion.n_output_tokens == 100
        assert all(char.isprintable() or char == "\n" for char in completion.text)
        assert len(set(completion.text.split())) > 10
