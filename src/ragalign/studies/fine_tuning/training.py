"""Fine-tuning with trl and peft: low-rank adapters or all weights, with the loss on responses only."""

from __future__ import annotations

import gc
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ragalign._bars import hidden_bars
from ragalign._optional import require
from ragalign._quiet import environment
from ragalign.errors import GenerationError
from ragalign.generation.base import one_line
from ragalign.models import locate_model
from ragalign.packing import Packer
from ragalign.types import Demonstration, Turn


@dataclass(frozen=True, slots=True)
class Training:
    """Options of fine-tuning.

    Attributes:
        epochs: passes over the demonstrations; 15 is LIMA's (Zhou et al. 2023, arXiv 2305.11206).
        batch_size: demonstrations per step; 32 is LIMA's.
        per_device: demonstrations per device at a time.
        learning_rate: learning rate of all weights, falling linearly to zero; 1e-5 is LIMA's.
        lora_learning_rate: learning rate of adapters.
        lora_rank: rank of adapters, on all linear layers, with a scale of twice the rank.
        bfloat16: whether to train in mixed precision.
        optimizer: the optimizer's name in transformers; "adafactor" needs little memory.
    """

    epochs: float = 15.0
    batch_size: int = 32
    per_device: int = 4
    learning_rate: float = 1e-5
    lora_learning_rate: float = 2e-4
    lora_rank: int = 16
    bfloat16: bool = False
    optimizer: str = "adamw_torch"


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a training.

    Attributes:
        n_tokens: tokens processed in all epochs.
        n_response_tokens: tokens with a loss, included in `n_tokens`.
        n_steps: steps of the optimizer.
        seconds: seconds of training, without loading.
        loss: mean loss over the whole training.
    """

    n_tokens: int
    n_response_tokens: int
    n_steps: int
    seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a demonstration, and the number of prompt tokens, which have no loss."""

    ids: list[int]
    n_prompt: int


def make_examples(packer: Packer, demonstrations: Sequence[Demonstration], eos: int | None) -> list[Example]:
    """Tokenise demonstrations as prompts of the packer, followed by the response as demonstrations show it.

    Args:
        packer: a packer without demonstrations, as used to query the tuned model.
        demonstrations: the training data.
        eos: the id of the end-of-sequence token, if the model has one.
    """
    template, tokenizer = packer.template, packer.tokenizer
    lead = template.middle.removeprefix(template.cue) if template.middle.startswith(template.cue) else ""
    examples = []
    for demonstration in demonstrations:
        prompt = packer.pack([Turn("user", demonstration.instruction)], [])
        # The response as the template renders it, with its delimiters neutralised.
        shown = template.render_demonstration(demonstration)
        answer = shown[shown.index(template.middle) + len(template.middle) :]
        ids, sizes = tokenizer.encode_parts([prompt.text, lead + answer])
        n_prefix = len(tokenizer.prefix_ids)
        whole = [*tokenizer.prefix_ids, *ids, *([] if eos is None else [eos])]
        examples.append(Example(whole, n_prefix + sizes[0]))
    return examples


def load_trainers() -> tuple[Any, Any]:
    """Import trl and peft.

    Raises:
        MissingDependencyError: either is not installed.
    """
    # trl sets this variable on import, which would make later engines in this process verbose.
    with environment(VLLM_LOGGING_LEVEL="ERROR"):
        return require("trl", "fine-tuning"), require("peft", "fine-tuning")


def fine_tune(
    model: str,
    kind: Literal["lora", "full"],
    packer: Packer,
    demonstrations: Sequence[Demonstration],
    out: Path,
    training: Training,
    seed: int,
) -> Cost:
    """Fine-tune a model and save it, with adapters merged into the weights, as a folder that all backends can load.

    Raises:
        GenerationError: the model could not be loaded or the training failed.
        MissingDependencyError: trl or peft is not installed.
    """
    trl, peft = load_trainers()
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    located = locate_model(model)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), hidden_bars("datasets", "transformers"):
        warnings.simplefilter("ignore")
        try:
            tokenizer = AutoTokenizer.from_pretrained(located)
            loaded = AutoModelForCausalLM.from_pretrained(located, dtype="float32")
            examples = make_examples(packer, demonstrations, tokenizer.eos_token_id)
            rows = datasets.Dataset.from_dict(
                {
                    "input_ids": [example.ids for example in examples],
                    "completion_mask": [
                        [0] * example.n_prompt + [1] * (len(example.ids) - example.n_prompt) for example in examples
                    ],
                }
            )
            padding = AutoTokenizer.from_pretrained(located)
            if padding.pad_token is None:  # padding is masked, so any token works
                padding.pad_token = padding.eos_token or padding.convert_ids_to_tokens(0)
            adapters = None
            if kind == "lora":
                adapters = peft.LoraConfig(
                    r=training.lora_rank,
                    lora_alpha=2 * training.lora_rank,
                    target_modules="all-linear",
                    task_type="CAUSAL_LM",
                )
            trainer = trl.SFTTrainer(
                loaded,
                args=trl.SFTConfig(**_arguments(training, kind, len(examples), scratch, seed)),
                train_dataset=rows,
                processing_class=padding,
                peft_config=adapters,
            )
            trainer.remove_callback(_printer())
            start = time.perf_counter()
            result = trainer.train()
            seconds = time.perf_counter() - start
            tuned = trainer.model.merge_and_unload() if adapters is not None else trainer.model
            tuned.config.use_cache = True
            tuned.save_pretrained(out)
            tokenizer.save_pretrained(out)
        except (OSError, ValueError, RuntimeError) as error:
            raise GenerationError(f"fine-tuning {model} failed: {one_line(error)}") from error
        finally:
            _free()
    n_passes = float(result.metrics.get("epoch", training.epochs))
    return Cost(
        n_tokens=round(n_passes * sum(len(example.ids) for example in examples)),
        n_response_tokens=round(n_passes * sum(len(example.ids) - example.n_prompt for example in examples)),
        n_steps=int(result.global_step),
        seconds=seconds,
        loss=float(result.training_loss),
    )


def _arguments(training: Training, kind: str, n: int, scratch: str, seed: int) -> dict[str, Any]:
    import torch

    # A small draw is one step per epoch.
    size = min(training.batch_size, n)
    per_device = max(divisor for divisor in range(1, min(training.per_device, size) + 1) if size % divisor == 0)
    return {
        "output_dir": scratch,
        "num_train_epochs": training.epochs,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": size // per_device,
        "learning_rate": training.lora_learning_rate if kind == "lora" else training.learning_rate,
        "lr_scheduler_type": "linear",
        "seed": seed,
        "data_seed": seed,
        "bf16": training.bfloat16,
        "optim": training.optimizer,
        "use_cpu": not torch.cuda.is_available(),
        "completion_only_loss": True,
        "max_length": None,
        "packing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": torch.cuda.is_available(),
    }


def _printer() -> Any:
    """The callback that prints log lines to stdout, which is reserved for results."""
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _free() -> None:
    """Free memory before the next engine starts."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
