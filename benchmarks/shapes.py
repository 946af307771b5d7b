"""Language models of given shapes, made on the spot: a configuration and a tokenizer, for `load_format="dummy"`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ragalign.generation import build_toy_model
from ragalign.pool import Pool
from ragalign.recipes import data_folder

# hidden_size, intermediate_size, layers, heads, key-value heads, vocabulary, context, rope theta: as published.
_ROWS: Mapping[str, tuple[int, int, int, int, int, int, int, float]] = MappingProxyType(
    {
        "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128256, 131072, 500000.0),
        "llama-2-13b": (5120, 13824, 40, 40, 40, 32000, 4096, 10000.0),
        # JackFram/llama-160m: as small as Llamas that people use get.
        "llama-160m": (768, 3072, 12, 12, 12, 32000, 2048, 10000.0),
        # The same with one key-value head, whose keys and values take a twelfth of the space.
        "llama-160m-mqa": (768, 3072, 12, 12, 1, 32000, 2048, 10000.0),
        # For CPUs: enough work per token that a step is more than overhead; and hardly any work at all.
        "small": (512, 1376, 6, 8, 8, 32000, 4096, 10000.0),
        "tiny": (64, 128, 2, 2, 1, 32000, 4096, 10000.0),
    }
)
SHAPES = tuple(_ROWS)


def make_model(folder: Path, shape: str, tokenizer: Path | None = None) -> Path:
    """Write what an engine needs of a Llama of this shape, but no weights.

    Args:
        folder: where to.
        shape: one of `SHAPES`.
        tokenizer: a folder with a tokenizer; None trains a byte-level BPE on the starter pool.
    """
    from transformers import AutoTokenizer, LlamaConfig

    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        with tempfile.TemporaryDirectory() as toy:
            texts = [
                text
                for each in Pool.load(data_folder() / "starter.jsonl")
                for text in (each.instruction, each.response)
            ]
            build_toy_model(toy, texts, vocab_size=8000)
            copy_tokenizer(Path(toy), folder)
    else:
        copy_tokenizer(tokenizer, folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    hidden, intermediate, layers, heads, kv_heads, vocabulary, context, theta = _ROWS[shape]
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        bos_token_id=loaded.bos_token_id,
        eos_token_id=loaded.eos_token_id,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    return folder


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
