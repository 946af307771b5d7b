"""Our files in the upstream tools themselves, and their code against ours.

The tools' requirements do not go with ours, so they live in an environment of their own:

    python3.11 -m venv upstream
    upstream/bin/pip install "alpaca_eval==0.6.6" "scikit-learn==1.5.2" "pandas<3" "numpy<2.3" setuptools
    upstream/bin/pip install --no-deps "fschat==0.2.36"
    RAGALIGN_UPSTREAM_PYTHON=upstream/bin/python pytest -m slow tests/judging/test_judging_upstream.py
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.judged import ask, make_item, reply

from ragalign.judging.answer_files import write_answers
from ragalign.judging.answers import load_items
from ragalign.judging.base import Figures, Judgement
from ragalign.judging.files import write_rows
from ragalign.judging.protocols.alpaca_eval import AlpacaEval1, AlpacaEval2
from ragalign.judging.protocols.length_control import LengthControl
from ragalign.judging.protocols.length_control_files import load_length_control
from ragalign.judging.protocols.mt_bench import MtBench
from ragalign.judging.protocols.mt_bench_pairwise import MtBenchPairwise
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item, JudgeReply

pytestmark = pytest.mark.slow
Upstream = Callable[..., str]
MODEL = "Qwen-14B-Chat"
JUDGE = "gpt-4-1106-preview"
CONFIG = "weighted_alpaca_eval_gpt4_turbo"
SHOW_RESULT = (
    "import pandas, runpy; pandas.set_option('display.width', 1000, 'display.max_columns', 99); "
    "runpy.run_module('fastchat.llm_judge.show_result', run_name='__main__')"
)


@pytest.fixture(scope="module")
def python() -> Path:
    """The upstream environment's interpreter."""
    found = os.environ.get("RAGALIGN_UPSTREAM_PYTHON")
    if not found:
        pytest.skip("RAGALIGN_UPSTREAM_PYTHON names no environment with alpaca_eval and fschat (see the module)")
    return Path(found).absolute()


@pytest.fixture(scope="module")
def upstream(python: Path) -> Upstream:
    """Runs the upstream environment's Python without keys or network."""
    environment = {key: value for key, value in os.environ.items() if "KEY" not in key}
    environment |= {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}

    def run(*arguments: object) -> str:
        command = [str(python), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "alpaca_eval" / "v2"


@pytest.fixture(scope="module")
def judged(folder: Path) -> list[Judgement]:
    """The real judge's replies, played to our protocol about the real answers."""
    rows = json.loads((folder / MODEL / "annotations.json").read_text())
    protocol = AlpacaEval2()
    judgements = []
    for position, row in enumerate(rows):
        item = Item(
            str(position),
            (row["instruction"],),
            Answer(row["generator_2"], (row["output_2"],)),
            Answer(row["generator_1"], (row["output_1"],)),
            metadata={"dataset": row["dataset"], "position": position},
        )
        settled = protocol.settle(item, JUDGE)
        if settled is not None:
            judgements.append(Judgement(item, settled))
        else:
            judgements.append(ask(protocol, protocol.build(item)[0], JudgeReply(JUDGE, row["raw_completion"])))
    return judgements


@pytest.fixture(scope="module")
def written(judged: list[Judgement], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ragalign writes: outputs of both models and annotations."""
    out = tmp_path_factory.mktemp("written")
    write_answers(out / "model.json", [one.item for one in judged], "alpaca-eval")
    baselines = [
        Item(one.item.id, one.item.turns, one.item.baseline, metadata=one.item.metadata)
        for one in judged
        if one.item.baseline
    ]
    write_answers(out / "reference.json", baselines, "alpaca-eval")
    write_rows(out / "annotations.json", AlpacaEval2().record(judged), "json")
    return out


def our_figures(path: Path, control: LengthControl | None = None) -> Figures:
    protocol = AlpacaEval2(length_control=control)
    (figures,) = protocol.aggregate(replay(protocol, [path]).verdicts)
    return figures


def evaluate(upstream: Upstream, python: Path, written: Path, folder: Path) -> str:
    """Run `alpaca_eval` on our outputs with our annotations as its cache; it leaves its files in the folder."""
    cache = folder / "cache.json"
    cache.write_bytes((written / "annotations.json").read_bytes())
    return upstream(
        python.parent / "alpaca_eval",
        f"--model_outputs={written / 'model.json'}",
        f"--reference_outputs={written / 'reference.json'}",
        f"--annotators_config={CONFIG}",
        f"--caching_path={cache}",
        "--fn_metric=get_winrate",
        "--sort_by=win_rate",
        "--precomputed_leaderboard=None",
        f"--output_path={folder / 'out'}",
    )


def test_alpaca_eval_prints_our_figures_from_our_files(
    upstream: Upstream, python: Path, written: Path, folder: Path, tmp_path: Path
) -> None:
    """`alpaca_eval` finds every annotation in the cache that we wrote; a call to the judge would fail."""
    printed = evaluate(upstream, python, written, tmp_path)
    figures = our_figures(written / "annotations.json").values
    line = next(line for line in printed.splitlines() if line.startswith(MODEL))
    print(printed)
    assert re.findall(r"[\d.]+", line.removeprefix(MODEL))[:2] == [
        f"{figures['win_rate']:.2f}",
        f"{figures['standard_error']:.2f}",
    ]
    with (tmp_path / "out" / CONFIG / "leaderboard.csv").open() as file:
        (row,) = csv.DictReader(file)
    with (folder / "leaderboard.csv").open() as file:
        published = next(row for row in csv.DictReader(file) if row[""] == MODEL)
    for key in ("win_rate", "standard_error", "discrete_win_rate", "n_wins", "n_wins_base", "n_draws", "avg_length"):
        assert float(row[key]) == pytest.approx(figures[key], abs=1e-6), key
        assert figures[key] == pytest.approx(float(published[key]), abs=1e-6), key


def test_we_read_what_alpaca_eval_writes(upstream: Upstream, python: Path, written: Path, tmp_path: Path) -> None:
    evaluate(upstream, python, written, tmp_path)
    theirs = our_figures(tmp_path / "out" / CONFIG / "annotations.json").values
    assert theirs["win_rate"] == pytest.approx(our_figures(written / "annotations.json").values["win_rate"], abs=1e-9)
    items = load_items(written / "model.json", baseline=written / "reference.json")
    assert len(items) == 805


GLM = """
import json, sys, pandas as pd, numpy as np
import alpaca_eval.metrics.glm_winrate as glm
annotations, gamed, name, folds = sys.argv[1:5]
glm.hf_hub_download = lambda **_: gamed
if folds == "stable":
    class StableFolds(glm.GroupKFold):
        def _iter_test_indices(self, X, y, groups):
            number = self.n_splits - 1 - np.asarray(groups) % self.n_splits
            return (np.where(number == fold)[0] for fold in range(self.n_splits))
    glm.GroupKFold = StableFolds
fit, chosen = glm.fit_LogisticRegressionCV, []
def spy(*args, **kwargs):
    model = fit(*args, **kwargs)
    chosen.append(float(model.C_[0]))
    return model
glm.fit_LogisticRegressionCV = spy
frame = pd.DataFrame(json.load(open(annotations)))
found = glm.get_length_controlled_winrate(frame, glm_name=name, save_weights_dir=None)
print(json.dumps({**{key: float(value) for key, value in found.items()}, "C": chosen[0]}))
"""


@pytest.fixture(scope="module")
def gamed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reconstructed regularising rows in the form that upstream downloads."""
    path = tmp_path_factory.mktemp("gamed") / "df_gamed.csv"
    with (folder / "df_gamed.reconstructed.csv").open() as source, path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(
            ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        )
        for row in csv.DictReader(source):
            length = math.atanh(float(row["tanh_std_delta_len"]))
            rest = (repr(length), row["instruction_difficulty"], "False")
            writer.writerow([row["model"], row["index"], row["preference_pseudo"], *rest])
    return path


@pytest.mark.parametrize("folds", ["own", "stable"])
@pytest.mark.parametrize("name", ["length_controlled_v1", "length_controlled_minimal"])
@pytest.mark.parametrize("model", [MODEL, "NullModel", "OpenHermes-2.5-Mistral-7B", "FuseChat-Llama-3.2-1B-Instruct"])
def test_our_length_control_is_alpaca_evals(
    upstream: Upstream, folder: Path, gamed: Path, tmp_path: Path, model: str, name: str, folds: str
) -> None:
    """The same fit at the C that upstream chooses; and the same choice of C where the folds are the same.

    scikit-learn before 1.8 ordered equally large groups by an unstable sort, so that upstream's folds depend on the
    machine; several Cs fit about equally well, and the choice between them follows the folds.
    """
    script = tmp_path / "glm.py"
    script.write_text(GLM)
    path = folder / model / "annotations.json"
    theirs = json.loads(upstream(script, path, gamed, name, folds))
    c = theirs["C"] if folds == "own" else None
    control: LengthControl | None = LengthControl(c=c, by_name=True)
    if name == "length_controlled_v1":
        difficulty = folder / "instruction_difficulty.recovered.csv"
        control = load_length_control(difficulty=difficulty, gamed=folder / "df_gamed.reconstructed.csv", c=c)
    ours = our_figures(path, control).values
    print(model, name, folds, theirs["C"], theirs["length_controlled_winrate"], ours["length_controlled_winrate"])
    # On the same folds the minimal model's Cs can be tied within liblinear's own tolerance.
    is_tied = folds == "stable" and name == "length_controlled_minimal"
    assert is_tied or ours["glm_c"] == pytest.approx(theirs["C"])
    tolerance = 0.05 if is_tied else 1e-4
    assert ours["length_controlled_winrate"] == pytest.approx(theirs["length_controlled_winrate"], abs=tolerance)
    assert ours["glm_name"] == name


PROMPTS = """
import json, sys, pandas as pd
from pathlib import Path
import alpaca_eval
from alpaca_eval import utils
from alpaca_eval.annotators import PairwiseAnnotator
annotations, config, prompt = sys.argv[1:4]
frame = pd.DataFrame(json.load(open(annotations)))[["instruction", "output_1", "output_2"]]
single = next(iter(PairwiseAnnotator(annotators_config=config, caching_path=None).annotators.values()))
shown = single._preprocess(frame)
template = (Path(alpaca_eval.__file__).parent / "evaluators_configs" / prompt).read_text()
texts, _ = utils.make_prompts(shown, template)
messages = []
for text in texts:
    try:
        messages.append(utils.prompt_to_chatml(text))
    except Exception:
        messages.append(None)
print(json.dumps({"template": template, "index": [int(i) for i in shown.index], "messages": messages}))
"""


@pytest.mark.parametrize(
    ("protocol", "config", "prompt"),
    [
        (AlpacaEval1, "alpaca_eval_gpt4", "alpaca_eval_gpt4/alpaca_eval.txt"),
        (AlpacaEval2, "weighted_alpaca_eval_gpt4_turbo", "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"),
    ],
)
def test_the_published_prompt_gives_alpaca_evals_messages(
    upstream: Upstream, folder: Path, tmp_path: Path, protocol: type[AlpacaEval2], config: str, prompt: str
) -> None:
    """Byte for byte, for every answer that does not itself hold a placeholder or a message mark."""
    script = tmp_path / "prompts.py"
    script.write_text(PROMPTS)
    path = folder / "OpenHermes-2.5-Mistral-7B" / "annotations.json"
    theirs = json.loads(upstream(script, path, config, prompt))
    template = tmp_path / "prompt.txt"
    template.write_text(theirs["template"])
    ours = protocol(prompt_file=template)
    rows = json.loads(path.read_text())
    n_compared = 0
    for index, messages in zip(theirs["index"], theirs["messages"], strict=True):
        row = rows[index]
        texts = (row["instruction"], row["output_1"], row["output_2"])
        if any(mark in text for text in texts for mark in ("{instruction}", "{output_", "<|im_")):
            continue
        item = Item("x", (texts[0],), Answer("m", (texts[2],)), Answer("b", (texts[1],)))
        (request,) = ours.build(item)
        assert [{"role": turn.role, "content": turn.content} for turn in request.messages] == messages
        n_compared += 1
    assert n_compared > 790


def shown(printed: str, heading: str) -> dict[str, float]:
    """Model to score, out of a table that pandas printed."""
    part = printed.split(f"########## {heading} ##########")[1].split("##########")[0]
    return {
        match[1]: float(match[2]) for match in re.finditer(r"^(\S+)(?:\s+[12])?\s+([\d.]+)$", part, flags=re.MULTILINE)
    }


def test_fastchat_shows_our_single_judgements(upstream: Upstream, tmp_path: Path) -> None:
    protocol = MtBench()
    scripted = ["[[8]]", "[[5.5]]", "no score", "Rating: [[9]]", "[3]", "[[10]]"]
    requests = [request for number in (101, 102, 103) for request in protocol.build(make_item(number, turns=2))]
    judged = [ask(protocol, request, reply(text)) for request, text in zip(requests, scripted, strict=True)]
    path = tmp_path / "judge_single.jsonl"
    write_rows(path, protocol.record(judged), "jsonl")
    printed = upstream("-c", SHOW_RESULT, "--input-file", path)
    print(printed)
    (figures,) = protocol.aggregate([one.verdict for one in judged])
    for heading, name in (("First turn", "turn_1"), ("Second turn", "turn_2"), ("Average", "overall")):
        assert shown(printed, heading) == pytest.approx({"model": figures.values[name]}, abs=1e-5)
    assert figures.n_unscored == 1


def test_we_show_what_fastchat_shows_of_real_judgements(upstream: Upstream, shared_data: Path) -> None:
    path = shared_data / "mt_bench" / "judgment_gpt-4_single_medusa.jsonl"
    printed = upstream("-c", SHOW_RESULT, "--input-file", path)
    ours = {one.model: one.values["overall"] for one in MtBench().aggregate(replay(MtBench(), [path]).verdicts)}
    for name, score in shown(printed, "Average").items():
        assert next(value for model, value in ours.items() if model.startswith(name.rstrip("."))) == pytest.approx(
            score
        )


def test_fastchat_shows_our_pairwise_judgements(upstream: Upstream, tmp_path: Path) -> None:
    protocol = MtBenchPairwise()
    pairs = [
        ("[[A]]", "[[B]]"),
        ("[[B]]", "[[A]]"),
        ("[[A]]", "[[A]]"),
        ("[[C]]", "[[C]]"),
        ("[[A]]", "?"),
        ("[[A]]", "[[B]]"),
    ]
    judged = [
        ask(protocol, request, reply(text))
        for number, pair in enumerate(pairs)
        for request, text in zip(protocol.build(make_item(number)), pair, strict=True)
    ]
    path = tmp_path / "judge_pair.jsonl"
    write_rows(path, protocol.record(judged), "jsonl")
    printed = upstream("-c", SHOW_RESULT, "--mode", "pairwise-all", "--input-file", path)
    print(printed)
    figures = {one.model: one.values for one in protocol.aggregate([one.verdict for one in judged])}
    for model, values in figures.items():
        cells = next(
            cells for cells in map(str.split, printed.splitlines()) if cells[:1] == [model] and len(cells) == 7
        )
        numbers = [float(number) for number in cells[1:]]
        counts: list[Any] = [values[key] for key in ("win", "loss", "tie")]
        rates = [values[key] / 100 for key in ("win_rate", "loss_rate", "win_rate_adjusted")]
        assert numbers == pytest.approx([*counts, *rates], abs=1e-6)
