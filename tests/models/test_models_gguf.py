"""GGUF files give the model and the tokenizer that they hold; what cannot be read is one line."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.gguf_file import write_gguf
from fixtures.tiny_model import TEXTS

from ragalign.errors import ConfigError, GenerationError, RagalignError
from ragalign.models import display_name, locate_model, locate_tokenizer
from ragalign.tokenization import Tokenizer

HARD_TEXTS = [
    *TEXTS,
    "",
    "  two  spaces,\n\n\ta tab and\r\nlines ",
    "In 1871, 3.14159 times 2,000 is 6283.18.",
    "<|begin_of_text|> is text, and so is <|end_of_text|>",
    "🙂🙂 你好世界 e\u0301 \u00a0 \u200b",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_converted_model_computes_what_the_original_does(tiny_model: Path, file: Path, cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    converted = locate_model(file, cache=cache)
    ids = torch.arange(2, 300)[None]
    with torch.inference_mode():
        logits = [
            AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").eval()(ids).logits
            for folder in (tiny_model, converted)
        ]
    assert torch.equal(*logits)
    config = json.loads(Path(converted, "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config


def test_ids_are_those_of_the_original_tokenizer(tiny_model: Path, file: Path, cache: Path) -> None:
    original, converted = Tokenizer.load(tiny_model), Tokenizer.load(locate_model(file, cache=cache))
    assert converted.encode_batch(HARD_TEXTS) == original.encode_batch(HARD_TEXTS)
    assert converted.prefix_ids == original.prefix_ids
    assert converted.special_tokens == original.special_tokens


@pytest.mark.parametrize(
    ("fields", "bos", "eos"),
    [
        ({}, True, False),
        ({"tokenizer__ggml__add_bos_token": False}, False, False),
        ({"tokenizer__ggml__add_bos_token": None}, True, False),  # llama.cpp's default for this way of splitting
        ({"tokenizer__ggml__add_bos_token": None, "tokenizer__ggml__pre": "gpt-2"}, False, False),
        ({"tokenizer__ggml__add_eos_token": True}, True, True),
        ({"tokenizer__ggml__bos_token_id": None}, False, False),  # there is nothing to add
    ],
)
def test_bos_and_eos_are_what_the_file_says(
    tiny_model: Path, tmp_path: Path, fields: dict[str, Any], bos: bool, eos: bool
) -> None:
    tokenizer = Tokenizer.load(
        locate_tokenizer(write_gguf(tiny_model, tmp_path / "m.gguf", **fields), cache=tmp_path / "cache")
    )
    assert tokenizer.prefix_ids == ((0,) if bos else ())
    assert tokenizer.suffix_ids == ((1,) if eos else ())


def test_a_tokenizer_alone_writes_no_weights(file: Path, tmp_path: Path) -> None:
    folder = Path(locate_tokenizer(file, cache=tmp_path))
    assert not list(folder.glob("*.safetensors"))
    assert Path(locate_model(file, cache=tmp_path)) != folder
    assert locate_tokenizer(file, cache=tmp_path) == locate_model(file, cache=tmp_path)


def test_an_unknown_way_of_splitting_is_said(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locate_tokenizer(write_gguf(tiny_model, tmp_path / "m.gguf", tokenizer__ggml__pre="strange"), cache=tmp_path / "c")
    assert "splits text by the rule 'strange'" in caplog.text


def test_digits_stand_alone_where_the_file_says_so(tiny_model: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_model, tmp_path / "m.gguf", tokenizer__ggml__pre="smollm")
    tokenizer = Tokenizer.load(locate_tokenizer(file, cache=tmp_path / "c"))
    assert len(tokenizer.encode("1871")) == 4
    assert tokenizer.encode(" 18") == [*tokenizer.encode(" "), *tokenizer.encode("1"), *tokenizer.encode("8")]


def test_sentencepiece_agrees(shared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Llama-2's vocabulary in a GGUF file gives the ids that SentencePiece gives."""
    sentencepiece = pytest.importorskip("sentencepiece")
    oracle = sentencepiece.SentencePieceProcessor(
        model_file=str(next((shared_data / "tokenizers" / "llama-2").glob("*.model")))
    )
    pieces = range(oracle.vocab_size())
    kinds = [
        2 if oracle.is_unknown(n) else 3 if oracle.is_control(n) else 6 if oracle.is_byte(n) else 1 for n in pieces
    ]
    file = write_gguf(
        tiny_model,
        tmp_path / "llama.gguf",
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre="default",
        tokenizer__ggml__tokens=[oracle.id_to_piece(n) for n in pieces],
        tokenizer__ggml__scores=[oracle.get_score(n) for n in pieces],
        tokenizer__ggml__token_type=kinds,
        tokenizer__ggml__merges=None,
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__eos_token_id=2,
        tokenizer__ggml__unknown_token_id=0,
        tokenizer__ggml__add_bos_token=None,
        tokenizer__ggml__add_space_prefix=True,
    )
    tokenizer = Tokenizer.load(locate_tokenizer(file, cache=tmp_path / "c"))
    assert tokenizer.prefix_ids == (1,)
    texts = [text for text in HARD_TEXTS if "<|" not in text] + [
        json.loads(line)["instruction"]
        for line in (shared_data / "pools" / "lima_1k.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert tokenizer.encode_batch(texts) == [oracle.encode(text) for text in texts]


def test_a_folder_with_one_file_is_that_file(file: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copy(file, tmp_path / "Tiny.GGUF")
    assert locate_model(tmp_path, cache=cache) == locate_model(file, cache=cache)
    assert locate_model(str(tmp_path), cache=cache) == locate_model(file, cache=cache)
    shutil.copy(file, tmp_path / "other.gguf")
    with pytest.raises(ConfigError, match=r"has 2 GGUF files; name one of them: Tiny\.GGUF, other\.gguf"):
        locate_model(tmp_path, cache=cache)


def test_a_file_without_the_suffix_is_known_by_its_first_bytes(file: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copy(file, tmp_path / "sha256-1234")
    assert locate_model(tmp_path / "sha256-1234", cache=cache) == locate_model(file, cache=cache)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match="neither a model folder nor a GGUF file"):
        locate_model(tmp_path / "notes.txt", cache=cache)


def test_what_is_no_gguf_comes_back_as_it_is(tiny_model: Path) -> None:
    assert locate_model(tiny_model) == str(tiny_model)
    assert locate_model("owner/name") == "owner/name"


def test_names_for_people() -> None:
    assert display_name("models/gemma-3-270m-q4_k_m.gguf") == "gemma-3-270m-q4_k_m"
    assert display_name("packaged:gemma-3-270m") == "gemma-3-270m"
    assert display_name("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split__count": 3}, "one of 3 parts of a split GGUF file"),
        ({"general__type": "adapter"}, "is not a language model, but 'adapter'"),
        ({"general__architecture": "clip"}, "is not a language model"),
        ({"general__architecture": "newest"}, "newest"),
        ({"tokenizer__ggml__model": "strange"}, "strange"),
        ({"tokenizer__ggml__tokens": None, "llama__vocab_size": 10}, "has no tokenizer"),
        ({"tokenizer__ggml__bos_token_id": 99999}, "its BOS is token 99999"),
        ({"llama__embedding_length": 128}, "cannot read"),
        ({"leave_out": "blk.1.ffn_up.weight"}, "lacks 1 of the model's tensors"),
    ],
)
def test_files_that_are_no_whole_model_are_refused(
    tiny_model: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    file = write_gguf(tiny_model, tmp_path / "m.gguf", **fields)
    with pytest.raises(GenerationError, match=message) as caught:
        locate_model(file, cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_parts_of_a_split_file_are_known_by_their_names(file: Path, tmp_path: Path) -> None:
    for n in (1, 2):
        shutil.copy(file, tmp_path / f"m-0000{n}-of-00002.gguf")
    for given in (tmp_path, tmp_path / "m-00002-of-00002.gguf"):
        with pytest.raises(ConfigError, match="llama-gguf-split --merge"):
            locate_model(given, cache=tmp_path / "cache")


def test_damaged_files_are_one_line(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    damaged = {
        "empty": b"",
        "cut in the magic": whole[:3],
        "cut in the header": whole[:5000],
        "cut in the weights": whole[: len(whole) // 2],
        "another format": b"PK\x03\x04" + whole[4:],
        "another version": whole[:4] + b"\x63\0\0\0" + whole[8:],
        "endless counts": whole[:8] + b"\xff" * 16 + whole[24:],
        "noise in the header": whole[:300] + b"\xfe" * 200 + whole[500:],
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(RagalignError, match=r"cannot read|damaged|holds no") as caught:
            locate_model(path, cache=tmp_path / "cache")
        assert "\n" not in str(caught.value), name
    with pytest.raises(ConfigError, match="no model file"):
        locate_model(tmp_path / "missing.gguf", cache=tmp_path / "cache")


def test_numbers_that_are_not_finite_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GenerationError, match=r"model\.norm\.weight contains numbers that are not finite"):
        locate_model(write_gguf(broken, tmp_path / "m.gguf"), cache=tmp_path / "cache")


def test_a_damaged_copy_is_written_again(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(locate_model(file, cache=tmp_path))
    good = {path.name: path.read_bytes() for path in folder.iterdir()}

    def flip() -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")

    damages = [
        flip,
        (folder / "tokenizer.json").unlink,
        lambda: (folder / "converted.json").write_text("{bad"),
        lambda: (folder / "converted.json").write_text("[]"),
        lambda: shutil.rmtree(folder),
        lambda: (folder.with_name(f"{folder.name}.part").mkdir(), flip()),  # a writer was killed
    ]
    with caplog.at_level(logging.INFO, "ragalign.models"):
        for damage in damages:
            caplog.clear()
            damage()
            assert locate_model(file, cache=tmp_path) == str(folder)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
            assert f"reading {file} once, into {folder} (" in caplog.text
        caplog.clear()
        locate_model(file, cache=tmp_path)
    assert caplog.text == ""


def test_two_processes_convert_once(file: Path, tmp_path: Path) -> None:
    code = (
        "import logging, sys; logging.basicConfig(stream=sys.stdout, format='%(message)s'); "
        "logging.getLogger('ragalign').setLevel('INFO'); from pathlib import Path; "
        "from ragalign.models import locate_model; print(locate_model(sys.argv[1], cache=Path(sys.argv[2])))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, file, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert sum(output.count("reading") for output in outputs) == 1


def test_a_cache_that_cannot_be_written_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match="set RAGALIGN_CACHE to another folder"):
        locate_model(file, cache=tmp_path / "cache")


def test_the_variable_names_the_cache(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGALIGN_CACHE", str(tmp_path))
    assert Path(locate_tokenizer(file)).parent == tmp_path / "models"
