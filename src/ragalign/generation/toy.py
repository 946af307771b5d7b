"""Creating a toy language model: random weights in real formats.

It shows that a pipeline works end to end where no model can be downloaded. Its output is meaningless.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Llama 3's pre-tokenizer: contractions, words with one leading character, up to three digits, punctuation with
# trailing newlines, whitespace.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"


def build_toy_model(
    folder: str | Path, texts: Sequence[str], *, seed: int = 0, vocab_size: int = 1024, context_length: int = 4096
) -> Path:
    """Create a two-layer model with Llama's architecture and its tokenizer, in seconds.

    The tokenizer is a byte-level BPE with Llama 3's pre-tokenizer, trained on `texts`; it adds BOS. The weights are
    random. Tokens that are not readable text by themselves (control characters, parts of a character, EOS) are made
    unlikely, so that the output is a word salad instead of noise.

    Args:
        folder: the folder for config, weights (float32 safetensors) and tokenizer, created if missing.
        texts: training texts of the tokenizer; a few hundred sentences are enough.
        seed: random seed of the weights.
        vocab_size: maximum vocabulary size; smaller if `texts` give fewer merges.
        context_length: maximum tokens of prompt and completion together.

    Returns:
        `folder`, ready for vLLM and for transformers.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(texts, vocab_size, context_length)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of width 32, the smallest that vLLM's attention supports
        num_key_value_heads=1,
        max_position_embeddings=context_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        # Far larger than for training: logits differ by several units, so that greedy choices are not near-ties.
        initializer_range=0.25,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    unreadable = [number for number in range(len(tokenizer)) if not _is_readable(tokenizer.decode([number]))]
    with torch.no_grad():
        # A zero row is a logit of zero, far below the best of the others.
        model.lm_head.weight[[tokenizer.bos_token_id, tokenizer.eos_token_id, *unreadable]] = 0
    config.save_pretrained(folder)
    save_file(dict(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _train_tokenizer(texts: Sequence[str], vocab_size: int, context_length: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def _is_readable(text: str) -> bool:
    return bool(text) and "\ufffd" not in text and all(char.isprintable() or char == "\n" for char in text)
