"""Converting GGUF files to transformers' format: bfloat16 safetensors, configuration and tokenizer."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from pathlib import Path
from typing import Any

from ragalign._bars import hidden_bars, transformers_errors_only
from ragalign._optional import require
from ragalign.errors import GenerationError, RagalignError
from ragalign.models.gguf import Header, damaged
from ragalign.models.gguf_tokenizer import write_tokenizer

logger = logging.getLogger(__name__)


def convert(path: Path, header: Header, folder: Path, *, label: str, weights: bool = True) -> None:
    """Write the model of a GGUF file into `folder`.

    Args:
        path: the file.
        header: its header, from `read_header`.
        folder: an existing folder.
        label: the name of the file in messages.
        weights: whether to write the model, or only its tokenizer.

    Raises:
        GenerationError: the weights are damaged, or transformers does not support them.
        MissingDependencyError: the package `accelerate` is not installed.
    """
    require("accelerate", "reading a GGUF file")
    if weights and "rope_freqs.weight" in header.tensors:
        logger.warning(
            "%s scales its rotary frequencies for long contexts, which transformers ignores in GGUF files: answers to "
            "prompts beyond the original context length will be poor",
            label,
        )
    # In a separate folder, since transformers would use a configuration or adapter beside the file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch, _quiet():
        link = Path(scratch, "model.gguf")
        link.symlink_to(path)
        try:
            write_tokenizer(link, header, folder, label)
            if weights:
                _write_weights(link, folder, label)
        except (RagalignError, OSError, KeyboardInterrupt):
            raise
        # Readers and model classes raise many kinds of errors; all mean that the file is not supported.
        except Exception as error:
            raise damaged(label, error) from error


def _write_weights(path: Path, folder: Path, label: str) -> None:
    """Read the weights and save them as a model that was never quantised.

    A model from transformers' GGUF reader cannot be saved, since its configuration has the quantisation. So its weights
    are loaded, strictly, into a new model with the original configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # transformers parses the whole header each time it needs the configuration, so load it only once.
    config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        path.parent, config=deepcopy(config), gguf_file=path.name, dtype=torch.bfloat16, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise GenerationError(f"{label} lacks {len(missing)} of the model's tensors, such as {missing[0]}")
    config.architectures = [type(loaded).__name__]
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = loaded.state_dict()
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise GenerationError(f"{label} is damaged: {name} contains numbers that are not finite")
    fresh.load_state_dict(weights, strict=True, assign=True)
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' messages and progress bars, one of which ignores its settings."""
    with (
        transformers_errors_only(),
        hidden_bars("transformers"),
        warnings.catch_warnings(),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
