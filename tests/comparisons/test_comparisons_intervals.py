"""Every figure of a protocol has an interval that is none of convenience."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures.judged import ask, make_item, reply

from ragalign.comparisons.intervals import intervals
from ragalign.judging.base import Figures, Protocol
from ragalign.judging.protocols.alpaca_eval import AlpacaEval2
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.protocols.just_eval import JustEval
from ragalign.judging.protocols.length_control import LengthControl
from ragalign.judging.protocols.length_control_files import load_length_control
from ragalign.judging.protocols.mt_bench import MtBench
from ragalign.judging.replay import replay
from ragalign.statistics import wilson


def figures_of(protocol: Protocol, *paths: Path) -> Figures:
    (figures,) = protocol.aggregate(replay(protocol, paths).verdicts)
    return figures


def test_a_clean_sweep_has_wilsons_interval() -> None:
    """All of twelve won: a bootstrap would claim 100 to 100."""
    protocol = Ica()
    judged = [ask(protocol, request, reply("9 3")) for n in range(12) for request in protocol.build(make_item(n))]
    (figures,) = protocol.aggregate([one.verdict for one in judged])
    found = intervals(figures)
    assert (found["win_rate"].low, found["win_rate"].high) == pytest.approx(
        tuple(100 * end for end in wilson(12, 12)), abs=1e-9
    )
    assert (found["draw_rate"].low, found["draw_rate"].high) == pytest.approx(
        tuple(100 * end for end in wilson(0, 12)), abs=1e-9
    )
    assert found["win_rate"].method == "Wilson"


def test_what_is_unscored_counts_for_its_own_figures() -> None:
    protocol = MtBench()
    replies = iter(["[[8]]", "no score", "[[6]]", "[[4]]"])
    requests = [request for number in (101, 102) for request in protocol.build(make_item(number, turns=2))]
    (figures,) = protocol.aggregate([ask(protocol, request, reply(next(replies))).verdict for request in requests])
    found = intervals(figures)
    counts = {name: (found[name].n, found[name].n_unscored) for name in ("turn_1", "turn_2", "overall")}
    assert counts == {"turn_1": (2, 0), "turn_2": (1, 1), "overall": (3, 1)}


def test_the_average_of_aspects_has_an_interval(shared_data: Path) -> None:
    folder = shared_data / "just_eval" / "gpt-3.5-turbo-0301"
    figures = figures_of(JustEval(), *sorted(folder.glob("*.json")))
    found = intervals(figures)
    assert found["avg"].value == pytest.approx(figures.values["avg"])
    assert (found["avg"].n, found["avg_lens"].n, found["safety"].n) == (5 * 800 + 200, 800, 200)
    # The standard error from the parts: safety is of other prompts, the five aspects go together.
    general = np.array([figures.observations[name].values for name in figures.averages["avg"][:-1]]).sum(axis=0)
    safety = np.array(figures.observations["safety"].values)
    error = np.hypot(general.std(ddof=1) / np.sqrt(800), safety.std(ddof=1) / np.sqrt(200)) / 6
    assert found["avg"].high - found["avg"].low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_length_controlled_win_rate_has_an_interval(shared_data: Path) -> None:
    folder = shared_data / "alpaca_eval" / "v2"
    path = folder / "Qwen-14B-Chat" / "annotations.json"
    difficulty = folder / "instruction_difficulty.recovered.csv"

    published = load_length_control(weights=folder / "glm_weights.csv", difficulty=difficulty)
    figures = figures_of(AlpacaEval2(length_control=published), path)
    fixed = intervals(figures)["length_controlled_winrate"]
    assert fixed.value == figures.values["length_controlled_winrate"]
    # With published weights only the prompts vary, as in upstream's own standard error.
    assert fixed.high - fixed.low == pytest.approx(2 * 1.96 * figures.values["lc_standard_error"], rel=0.2)

    figures = figures_of(AlpacaEval2(length_control=LengthControl(c=0.36, by_name=True)), path)
    fitted = intervals(figures)["length_controlled_winrate"]
    # The sandwich estimate of the constant's standard error, worked out by hand from the fit without a penalty.
    assert (fitted.low, fitted.high) == pytest.approx(
        sandwich(path, figures.values["length_controlled_winrate"]), abs=2
    )
    assert fitted.low < figures.values["length_controlled_winrate"] < fitted.high


def sandwich(path: Path, win_rate: float) -> tuple[float, float]:
    verdicts = replay(AlpacaEval2(), [path]).verdicts
    y = np.array([verdict.preference for verdict in verdicts], dtype=float)
    delta = np.array([v.metadata["len_1"] - v.metadata["len_2"] for v in verdicts], dtype=float)
    x = np.stack([np.tanh(delta / delta.std(ddof=1)), np.ones(len(y))], axis=1)
    weights = np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p))
    bread = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
    error = (bread @ ((x * ((y - p) ** 2)[:, None]).T @ x) @ bread)[1, 1] ** 0.5
    centre = np.log(win_rate / (100 - win_rate))
    low, high = (float(100 / (1 + np.exp(-(centre + z * error)))) for z in (-1.96, 1.96))
    return low, high
