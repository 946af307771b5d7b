"""Pre-train the testbed's model from scratch, on documents that are each a world of their own.

    python benchmarks/testbed/train.py --out src/ragalign/data/testbed/model --checkpoint /tmp/testbed.pt

Look-up does not come by itself in the time that there is: on documents alone, and on streams of topics and style
words too, the model first copies the commonest style of its context and stays there. So it learns in stages:

1. streams: topic words followed by style words, redrawn for each sequence. During the first steps two heads are told
   where to look: one at the word before, two at what followed the same word earlier. Then they keep it by themselves.
2. short documents in the real form, with the same help for a while.
3. longer documents, with no help, in which a style may have been shown once or often, near or far.

One thread, and every step's data is drawn from the seed and the step's number, so that a run gives the same weights
again on the same machine, and an interrupted run resumes from its checkpoint with the same result.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizer as tokenizers_
import torch
import world
from model import Llama, Shape, attention_loss
from torch import Tensor
from torch.nn import functional as F

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.1
TOKENS_PER_STEP = 4096
# Style words, which must be looked up, against the rest of an answer, which follows from them and the question.
STYLE_WEIGHT, OTHER_WEIGHT = 1.0, 0.3
HELP_WEIGHT = 0.3


@dataclass(frozen=True)
class Stage:
    """A part of the training: steps, peak learning rate, and what its documents look like.

    Attributes:
        pairs: fewest and most pairs of a document; None for streams.
        helped: during how many steps two layers' heads are told where to look.
        decays: whether the learning rate goes down to a twentieth by the end.
    """

    name: str
    steps: int
    rate: float
    pairs: tuple[int, int] | None = None
    helped: int = 0
    decays: bool = False


STAGES = (
    Stage("streams", 600, 2e-3, helped=400),
    Stage("short", 1000, 1.5e-3, pairs=(3, 6), helped=400),
    Stage("long", 3000, 1.5e-3, pairs=(3, 12)),
    Stage("mixed", 4000, 1.5e-3, pairs=(2, 18), decays=True),
)


class Batch(NamedTuple):
    """Ids [n, t] and the weight of each id in the loss [n, t]."""

    ids: Tensor
    weights: Tensor


class Words:
    """Ids of the words that matter: topics by their place in an answer, and style words."""

    def __init__(self, tokenizer: Any) -> None:
        def number(text: str) -> int:
            [found] = tokenizer(text, add_special_tokens=False).input_ids
            return int(found)

        self.keys = np.array(
            [[number(form) for form in (f"{t.capitalize()}s", f" {t}", t.capitalize())] for t in world.TOPICS]
        )
        firsts = [opening.split()[0] for opening in world.OPENINGS]
        firsts += [word for word, _, _ in world.RULES]
        firsts += [sign_off.split()[0].rstrip(",") for sign_off in world.SIGN_OFFS]
        self.styles = np.array([number(f" {word}") for word in firsts])
        self.is_key = np.zeros(len(tokenizer), bool)
        self.is_key[self.keys] = True
        self.is_word = self.is_key.copy()
        self.is_word[self.styles] = True
        self.bos = tokenizer.bos_token_id
        self.answer = number("### Answer:")
        self.question = number("### Question:")


def stream_batch(rng: np.random.Generator, words: Words, n: int = 32, length: int = 65) -> Batch:
    """Streams ``topic style topic style ...``; half of them repeat one order, and then all of it can be foretold."""
    rows, weights = [], []
    for _ in range(n):
        k = int(rng.integers(4, 13))
        keys, values = rng.choice(words.keys.ravel(), k, replace=False), rng.choice(words.styles, k)
        m = length // 2 + 1
        repeats = rng.random() < 0.5
        order = np.resize(np.arange(k), m) if repeats else rng.integers(0, k, m)
        weight = np.zeros(2 * m)
        if repeats:
            weight[2 * k :] = 1
        else:
            seen = [topic in order[:place] for place, topic in enumerate(order)]
            weight[1::2] = 2 * np.array(seen)
        rows.append(np.stack([keys[order], values[order]], 1).ravel()[:length])
        weights.append(weight[:length])
    return Batch(torch.tensor(np.array(rows)), torch.tensor(np.array(weights), dtype=torch.float32))


def topics_of_document(rng: random.Random, n_pairs: int) -> list[int]:
    """Which topic each pair is about: two or more topics, some shown once and some often."""
    n_topics = rng.randint(2, max(2, n_pairs - 1))
    topics = rng.sample(range(len(world.TOPICS)), n_topics)
    # Uneven shares: a topic that is shown once beside one that is shown six times.
    shares = [rng.random() ** 2 + 0.05 for _ in topics]
    chosen = rng.choices(topics, shares, k=n_pairs)
    if len(set(chosen)) == 1:
        chosen[rng.randrange(n_pairs)] = next(topic for topic in topics if topic != chosen[0])
    return chosen


def document_batch(
    rng: random.Random, tokenizer: Any, words: Words, topics: list[list[int]], split: world.Split
) -> Batch:
    """Documents in the form of the template, one for each list of topics, each with styles of its own."""
    texts = []
    for chosen in topics:
        styles = world.draw_styles(rng, sorted(set(chosen)), split)
        pairs = world.draw_pairs(rng, styles, chosen, split)
        texts.append("".join(world.render(pair) for pair in pairs) + "### Question:\n")
    encoded = tokenizer(texts).input_ids
    length = max(map(len, encoded))
    ids = np.full((len(texts), length), words.bos)
    weights = np.zeros((len(texts), length), np.float32)
    for row, found in enumerate(encoded):
        ids[row, : len(found)] = found
        weights[row, : len(found)] = _weights(np.array(found), words)
    return Batch(torch.tensor(ids), torch.tensor(weights))


def _weights(ids: np.ndarray, words: Words) -> np.ndarray:
    """Loss weights of a document: its answers and what comes next, less the styles that nothing has shown yet."""
    weights = np.zeros(len(ids), np.float32)
    opens = np.flatnonzero(ids == words.answer)
    closes = np.flatnonzero(ids == words.question)[1:]
    for start, end in zip(opens, closes, strict=True):
        weights[start + 2 : end + 1] = OTHER_WEIGHT
        places = start + 2 + np.flatnonzero(words.is_key[ids[start + 2 : end]])
        for place in places:
            weights[place + 1] = STYLE_WEIGHT if ids[place] in ids[:start] else 0
    return weights


def help_loss(model: Llama, ids: Tensor, inputs: list[Tensor], words: Words) -> Tensor:
    """Attention to the word before (layer 1), and to what followed the same topic or style word earlier (layer 2)."""
    n, t = ids.shape
    cos, sin = model.cos[:t], model.sin[:t]
    before = torch.eye(t, dtype=torch.bool)[:-1]
    before = torch.cat([torch.zeros(1, t, dtype=torch.bool), before]).expand(n, t, t)
    previous = torch.cat([torch.full_like(ids[:, :1], -1), ids[:, :-1]], 1)
    after_same = (ids[:, :, None] == previous[:, None, :]) & torch.ones(t, t, dtype=torch.bool).tril()
    after_same &= torch.tensor(words.is_word)[ids][:, :, None]
    return attention_loss(model.layers[0], inputs[0], cos, sin, 1, before) + attention_loss(
        model.layers[1], inputs[1], cos, sin, 2, after_same
    )


def one_in_eight(rng: random.Random, n_others: int = 8) -> list[int]:
    """Topics of a document whose last pair's topic has been shown once, among others that differ from each other."""
    own, *others = rng.sample(range(len(world.TOPICS)), n_others + 1)
    shown = [own, *others]
    rng.shuffle(shown)
    return [*shown, own]


@torch.no_grad()
def held_out(model: Llama, tokenizer: Any, words: Words, n: int = 64) -> tuple[float, float]:
    """Share of last answers, one demonstration in eight, that are right to the last word, and of right style words.

    Worlds of the development split; each word is predicted after the right words before it, which equals
    greedy decoding where all of them are right.
    """
    rng = random.Random("held out")
    ids, _ = document_batch(rng, tokenizer, words, [one_in_eight(rng) for _ in range(n)], "dev")
    found = model.logits(model(ids[:, :-1])).argmax(-1)
    right, styles = [], []
    for row in range(n):
        start = int((ids[row] == words.answer).nonzero()[-1]) + 2
        end = int((ids[row] == words.question).nonzero()[-1])
        same = (found[row, start - 1 : end - 1] == ids[row, start:end]).numpy()
        right.append(same.all())
        styles += list(same[1:][words.is_key[ids[row, start : end - 1].numpy()]])
    return float(np.mean(right)), float(np.mean(styles))


def rate_at(stage: Stage, step: int) -> float:
    """The learning rate at a step of a stage: a short warm-up, then level or down in a straight line."""
    warm = min(1.0, (step + 1) / 100)
    return stage.rate * warm * (1 - 0.95 * step / stage.steps if stage.decays else 1.0)


def train(args: argparse.Namespace) -> Llama:
    """The whole training, from the checkpoint if there is one."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = tokenizers_.build_tokenizer(Shape(0).context_length)
    words = Words(tokenizer)
    model = Llama(Shape(len(tokenizer)))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    gains = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}],
        betas=BETAS,
        fused=True,
    )
    done = 0
    if args.checkpoint.is_file():
        saved = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    total = 0
    began = time.monotonic()
    losses: list[float] = []
    for stage in STAGES:
        for step in range(stage.steps):
            total += 1
            if total <= done:
                continue
            rate = rate_at(stage, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = _draw(stage, f"{args.seed} {total}", tokenizer, words)
            loss = _loss(model, batch, words, helped=step < stage.helped)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            last = step == stage.steps - 1
            if total % args.every == 0 or last:
                exact, style = held_out(model, tokenizer, words)
                entry = {
                    "stage": stage.name,
                    "step": total,
                    "seconds": round(time.monotonic() - began),
                    "loss": round(float(np.mean(losses)), 4),
                    "exact": round(exact, 3),
                    "style": round(style, 3),
                }
                losses.clear()
                print(json.dumps(entry), flush=True)
                _save(model, optimizer, total, args.checkpoint)
                export(model, tokenizer, args.out)
    return model


def _draw(stage: Stage, seed: str, tokenizer: Any, words: Words) -> Batch:
    rng = random.Random(seed)
    if stage.pairs is None:
        return stream_batch(np.random.default_rng(rng.getrandbits(63)), words)
    n_pairs = rng.randint(*stage.pairs)
    n_documents = max(1, round(TOKENS_PER_STEP / 46 / n_pairs))
    topics = [topics_of_document(rng, n_pairs) for _ in range(n_documents)]
    return document_batch(rng, tokenizer, words, topics, "train")


def _loss(model: Llama, batch: Batch, words: Words, *, helped: bool) -> Tensor:
    ids, wanted = batch.ids[:, :-1], batch.weights[:, 1:] > 0
    with torch.autocast("cpu", torch.bfloat16):
        hidden, inputs = model.forward_with_inputs(ids)
        logits = model.logits(hidden[wanted])
        help_ = help_loss(model, ids, inputs, words) if helped else None
    weights = batch.weights[:, 1:][wanted]
    each = F.cross_entropy(logits.float(), batch.ids[:, 1:][wanted], reduction="none")
    loss = (each * weights).sum() / weights.sum()
    return loss if help_ is None else loss + HELP_WEIGHT * help_


def _save(model: Llama, optimizer: torch.optim.Optimizer, step: int, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
    part.replace(path)


def export(model: Llama, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder: config, generation config, float32 weights, tokenizer."""
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    shape = model.shape
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        max_position_embeddings=shape.context_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=True,
        **special,
    ).save_pretrained(folder)
    GenerationConfig(do_sample=False, **special).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 4 knows neither the new place of the base nor the new name of the tokenizer's class.
    _update(folder / "config.json", rope_theta=shape.rope_theta)
    _update(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    weights = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _update(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the model's folder, written at each checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True, help="where an interrupted run resumes from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    args = parser.parse_args()
    model = train(args)
    # A finished training that is started again only exports.
    export(model, tokenizers_.build_tokenizer(model.shape.context_length), args.out)


if __name__ == "__main__":
    main()
