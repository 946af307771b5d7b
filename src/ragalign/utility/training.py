"""Fine-tuning an encoder on measured gains, with sentence-transformers' trainer and its listwise distillation.

For each question, the encoder's similarities to some candidates are fitted to their gains: a softmax over the one is
brought close to a softmax over the other (as LLM-R does with a reward model, Wang et al. 2023, arXiv 2307.07164). Among
the candidates of a list are the most useful one and hard negatives: near in the original encoder's view, but useless.
"""

from __future__ import annotations

import math
import random
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragalign._bars import hidden_bars
from ragalign._progress import progress
from ragalign.encoders import DEFAULT_ENCODER, Encoder
from ragalign.encoders.locate import Located, locate
from ragalign.encoders.quiet import quiet
from ragalign.encoders.sentence_transformer import fastest_precision
from ragalign.errors import ConfigError, DataError, GenerationError
from ragalign.retrieval.calibration import Calibration, TextForm
from ragalign.retrieval.texts import texts_in_form
from ragalign.utility.card import write_card
from ragalign.utility.files import Gain, Gains
from ragalign.utility.held_out import evaluate
from ragalign.utility.trained import Trained, TrainOptions

# Sharpness of the softmax over cosines, as sentence-transformers' ranking losses have it.
_SCALE = 20.0
_MIN_QUESTIONS = 4


def train_encoder(
    gains: Gains, out: str | Path, *, encoder: str | Path = DEFAULT_ENCODER, options: TrainOptions | None = None
) -> Trained:
    """Fine-tune an encoder on gains and save it in a folder, with a card and its calibration.

    If the encoder never fits the held-out questions better than at the start, its weights are saved unchanged.

    Args:
        gains: see `GainFiles.read`.
        out: a folder that does not exist yet, or is empty.
        encoder: a sentence-transformers model, as folder or Hub id.
        options: see `TrainOptions`.

    Raises:
        ConfigError: the encoder cannot be loaded, or the folder is not empty.
        DataError: there are fewer than four questions with two measured candidates each.
        GenerationError: the training failed.
    """
    options = options or TrainOptions()
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder; name another one")
    lists = {name: found for name, found in gains.by_question().items() if len(found) > 1}
    if len(lists) < _MIN_QUESTIONS:
        raise DataError(
            f"training needs {_MIN_QUESTIONS} questions with two measured candidates each, and there are {len(lists)}; "
            "measure more with `ragalign utility score`"
        )
    text: TextForm = options.text or ("both" if gains.settings.get("text") == "both" else "instruction")
    located = locate(encoder)
    names = sorted(lists)
    random.Random(options.seed).shuffle(names)
    n_held_out = min(max(1, round(options.held_out * len(names))), len(names) - 1)
    held, seen = names[:n_held_out], names[n_held_out:]
    start = Encoder.load(encoder, cache=None)
    before = evaluate(start, gains, {name: lists[name] for name in held}, text)
    train_rows = _rows(start, gains, {name: lists[name] for name in seen}, text, options)
    held_rows = _rows(start, gains, {name: lists[name] for name in held}, text, options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place, so that an interruption leaves no folder that looks like an encoder.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / "encoder"
        best_epoch = _train(located, made, Path(scratch) / "steps", train_rows, held_rows, options)
        trained = Encoder.load(made, cache=None)
        after = evaluate(trained, gains, {name: lists[name] for name in held}, text)
        Calibration(after.slope, after.intercept, text).write(made)
        result = Trained(folder, before, after, len(seen), sum(len(lists[name]) for name in seen), best_epoch)
        write_card(made, result, located.id, gains.settings, options, text)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return result


Row = dict[str, Any]


def _rows(
    encoder: Encoder, gains: Gains, lists: dict[str, list[Gain]], text: TextForm, options: TrainOptions
) -> list[Row]:
    """Lists of candidates: the most useful, hard negatives, and others drawn at random.

    All have as many candidates, since the loss takes a table; where a question has fewer, some occur twice.
    """
    draw = random.Random(options.seed)
    names = sorted({gain.candidate for found in lists.values() for gain in found})
    texts = dict(zip(names, texts_in_form(text, [gains.demonstrations[name] for name in names]), strict=True))
    vectors = dict(zip(names, encoder.encode([texts[name] for name in names]), strict=True))
    questions = sorted(lists)
    asked = encoder.encode([gains.questions[name] for name in questions], kind="query")
    rows = []
    for question, vector in zip(questions, asked, strict=True):
        found = sorted(lists[question], key=lambda gain: -gain.per_token)
        labels = _standardised([gain.per_token for gain in found], options.sharpness)
        similar = [float(vector @ vectors[gain.candidate]) for gain in found]
        useless = range(len(found) // 2, len(found))
        hard = sorted(useless, key=lambda place: -similar[place])
        for _ in range(options.lists):
            chosen = [0, *hard[: (options.list_size - 1) // 2]]
            rest = [place for place in range(len(found)) if place not in chosen]
            chosen += draw.sample(rest, min(len(rest), options.list_size - len(chosen)))
            chosen += draw.choices(range(len(found)), k=options.list_size - len(chosen))
            rows.append(
                {
                    "query": gains.questions[question],
                    **{f"candidate_{n}": texts[found[place].candidate] for n, place in enumerate(chosen)},
                    "label": [labels[place] for place in chosen],
                }
            )
    return rows


def _standardised(values: Sequence[float], sharpness: float) -> list[float]:
    deviation = float(np.std(values))
    return [sharpness * (value - float(np.mean(values))) / deviation if deviation else 0.0 for value in values]


def _train(
    located: Located, out: Path, scratch: Path, rows: Sequence[Row], held_out: Sequence[Row], options: TrainOptions
) -> float:
    """Train and save; return the number of epochs after which the held-out questions were fitted best."""
    import datasets
    import torch
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

    name = str(located.folder) if located.folder is not None else located.id
    with quiet(), warnings.catch_warnings(), hidden_bars("datasets"):
        warnings.simplefilter("ignore")
        try:
            torch.manual_seed(options.seed)
            model = SentenceTransformer(name, revision=located.commit, local_files_only=located.folder is not None)
            model.model_card_data.widget = [{}]  # examples for a card; ours is another, so they are not computed
            n_steps = math.ceil(len(rows) / options.batch_size) * options.epochs
            trainer = SentenceTransformerTrainer(
                model=model,
                args=SentenceTransformerTrainingArguments(
                    output_dir=str(scratch),
                    num_train_epochs=options.epochs,
                    per_device_train_batch_size=options.batch_size,
                    per_device_eval_batch_size=options.batch_size,
                    learning_rate=options.learning_rate,
                    # Weights stay in float32; about three times as fast on processors with instructions for it.
                    bf16=fastest_precision(model.device.type) == "bfloat16",
                    use_cpu=model.device.type == "cpu",
                    warmup_steps=max(1, n_steps // 10),
                    eval_strategy="epoch",
                    eval_on_start=True,
                    save_strategy="epoch",
                    save_total_limit=1,
                    save_only_model=True,
                    load_best_model_at_end=True,
                    metric_for_best_model="eval_loss",
                    greater_is_better=False,
                    seed=options.seed,
                    report_to="none",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                ),
                train_dataset=datasets.Dataset.from_list(list(rows)),
                eval_dataset=datasets.Dataset.from_list(list(held_out)),
                loss=_loss(model),
                callbacks=[EarlyStoppingCallback(options.patience)],
            )
            trainer.remove_callback(PrinterCallback)
            with progress("training", n_steps, "steps") as advance:

                class Steps(TrainerCallback):  # type: ignore[misc]
                    def on_step_end(self, *_: Any, **__: Any) -> None:
                        advance(1)

                trainer.add_callback(Steps())
                trainer.train()
            losses = [
                (entry["epoch"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry
            ]
            best_epoch = min(losses, key=lambda pair: pair[1])[0]
            if best_epoch == 0:
                model = SentenceTransformer(name, revision=located.commit, local_files_only=located.folder is not None)
            model.save_pretrained(str(out), create_model_card=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise GenerationError(f"training the encoder {located.id} failed: {str(error).splitlines()[0]}") from error
    return float(best_epoch)


def _loss(model: Any) -> Any:
    """The distillation of the softmax over the gains into the softmax over scaled cosines."""
    from sentence_transformers.util import pairwise_cos_sim

    try:
        from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
    except ModuleNotFoundError:  # before version 6
        from sentence_transformers.losses import DistillKLDivLoss

    def scaled(queries: Any, candidates: Any) -> Any:
        return _SCALE * pairwise_cos_sim(queries, candidates)

    return DistillKLDivLoss(model, similarity_fct=scaled, temperature=1.0)
