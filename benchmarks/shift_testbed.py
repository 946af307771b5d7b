"""Token distribution shift on the testbed: what its construction implies, then what is measured.

    python benchmarks/shift_testbed.py --out benchmarks/results/shift_testbed.json --page docs/shift

The base model is the testbed's: it has learnt to look a topic's house style up in its context, and has memorised none.
The aligned model is made from it by fine-tuning, without any context, on the pool's ten demonstrations of each topic
that will be asked about, so it must memorise their styles. Both are then compared on unseen queries.

What that implies, written down before the first run:

1. An answer is made of *choices* (the first words of opening and sign-off, and the word that names the layout), which
   only the house style decides, and of the rest: what follows a choice, and what the query says. Without
   demonstrations the base model cannot know the choices. Of 24 openings, 8 layouts and 24 sign-offs, three are
   within rank 3 by chance, so that about 1 - 3/24 = 88 %, 1 - 3/8 = 63 % and 88 % of the choices are shifted.
2. The rest is unshifted almost everywhere: it follows from the choice or is copied from the query.
3. Retrieved demonstrations show the topic's own style: they close nearly all of the shift.
4. As many demonstrations drawn at random mostly show other topics: of 200 topics, nine random ones rarely hit the
   right one, so they close little of it, and so do three constant ones.
5. Choices are at the beginning, in the middle and near the end of an answer, so that the shift does not fade along
   the answer as it does for assistants, whose style is decided early.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from testbed import world

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.packing import Packer
from ragalign.pool import Pool
from ragalign.pool.queries import read_queries
from ragalign.recipes import Recipe, data_folder
from ragalign.studies.fine_tuning.training import Training, fine_tune
from ragalign.studies.shift.figures import ShiftFigures, figures
from ragalign.studies.shift.page import write_pages
from ragalign.studies.shift.running import ShiftSettings, run
from ragalign.tokenization import Tokenizer

RECIPES = {
    "testbed-zero-shot": '[retriever]\nname = "none"\n',
    "testbed-constant": '[constants]\nkind = "random"\npool = "package:testbed/pool.jsonl"\nn = 3\n\n'
    '[retriever]\nname = "none"\n',
    "testbed-random": '[retriever]\nname = "random"\n',
    "testbed-retrieved": '[retriever]\nname = "dense"\n',
}
COMMON = (
    '\n[template]\nform = "package:testbed/template.toml"\n\n'
    "[packing]\nmax_demonstrations = 9\nmax_tokens = 1500\n\n[decoding]\nmax_tokens = 64\n"
)


def categories() -> dict[str, list[str]]:
    """Choices: the word after the topic in each of an answer's three parts. The rest is what follows or is copied."""
    openings = "|".join(text.split()[0] for text in world.OPENINGS)
    layouts = "|".join(word for word, _, _ in world.RULES)
    sign_offs = "|".join(text.split()[0].rstrip(",") for text in world.SIGN_OFFS)
    return {
        "opening": [rf"(?<=\A\w{{{n}}}) (?:{openings})\b" for n in range(3, 16)],
        "layout": [rf"(?<=The \w{{{n}}}) (?:{layouts})(?=:)" for n in range(3, 16)],
        "sign-off": [rf"(?<=\n[A-Z]\w{{{n}}}) (?:{sign_offs})\b" for n in range(2, 15)],
    }


def checks(shown: dict[str, ShiftFigures]) -> dict[str, dict[str, object]]:
    """Each thing that the construction implies, the figure that decides it, and whether it holds."""
    same = shown["same"]
    choices = {kind: same.by_category[kind].value for kind in ("opening", "layout", "sign-off")}
    rest = max(share.value for kind, share in same.by_category.items() if kind not in choices)
    part = {name: context.closed.value for name, context in shown.items() if context.closed is not None}
    found: dict[str, tuple[object, bool]] = {
        "1. choices are shifted without demonstrations: openings, sign-offs near 0.88, layouts near 0.63": (
            {kind: round(value, 3) for kind, value in choices.items()},
            min(choices["opening"], choices["sign-off"]) > 0.7 and 0.4 < choices["layout"] < 0.85,
        ),
        "2. the rest is not": (round(rest, 3), rest < 0.05),
        "3. retrieved demonstrations close nearly all": (
            round(part["testbed-retrieved"], 3),
            part["testbed-retrieved"] > 0.8,
        ),
        "4. random and constant ones close little": (
            {name: round(part[name], 3) for name in ("testbed-random", "testbed-constant")},
            max(part["testbed-random"], part["testbed-constant"]) < 0.4,
        ),
    }
    return {name: {"measured": value, "holds": holds} for name, (value, holds) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, default=data_folder() / "testbed" / "model")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--backend", default="transformers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="folder for the page and the plots")
    options = parser.parse_args()
    started = time.perf_counter()
    data = data_folder() / "testbed"
    base, out, page = (path and path.resolve() for path in (options.base, options.out, options.page))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # so that results name the models, not where they are
        shutil.copytree(base, "testbed")
        recipes = []
        for recipe, text in RECIPES.items():
            (folder / f"{recipe}.toml").write_text(text + COMMON, encoding="utf-8")
            recipes.append(str(folder / f"{recipe}.toml"))
        pool = Pool.load(data / "pool.jsonl")
        Index.build(pool, Encoder.load()).save(folder / "index")
        template, _ = Recipe.load(recipes[0]).make_template()
        packer = Packer(template, Tokenizer.load("testbed"), Pool.from_demonstrations([]))
        queries = read_queries(data / "queries.jsonl")[: options.queries]
        topics = {query.metadata["topic"] for query in queries}
        taught = [demonstration for demonstration in pool if demonstration.metadata["topic"] in topics]
        training = Training(epochs=options.epochs, batch_size=8, per_device=8, learning_rate=1e-3)
        cost = fine_tune("testbed", "full", packer, taught, Path("testbed-tuned"), training, seed=0)
        settings = ShiftSettings(
            base="testbed",
            aligned="testbed-tuned",
            recipes=tuple(recipes[1:]),
            aligned_recipe=recipes[0],
            index=str(folder / "index"),
            max_tokens=64,
            backend=options.backend,
            options={"dtype": "float32"},
            categories=categories(),
        )
        outcome = run(settings, queries, folder / "run")
        shown = figures(outcome)
        right = sum(
            answer.text.strip() == str(query.metadata["reference"]).strip()
            for query, answer in zip(queries, outcome.answers, strict=True)
        )
        if page:
            page.mkdir(parents=True, exist_ok=True)
            write_pages(settings, outcome, shown, page, created=datetime.now(UTC), max_answers=10)
        os.chdir(page or data)
    by_name = {context.context: context for context in shown}
    result = {
        "command": "python " + " ".join(sys.argv),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "seconds": round(time.perf_counter() - started),
        "processor_seconds": round(time.process_time()),
        "training": {
            "demonstrations": len(taught),
            "epochs": options.epochs,
            "steps": cost.n_steps,
            "seconds": round(cost.seconds, 1),
        },
        "aligned_model_exact_match": round(right / len(queries), 3),
        "n_queries": len(queries),
        "implied": checks(by_name),
        "contexts": [context.to_dict() for context in shown],
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if out:
        out.write_text(text, encoding="utf-8")
    sys.stdout.write(json.dumps(result["implied"], indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
