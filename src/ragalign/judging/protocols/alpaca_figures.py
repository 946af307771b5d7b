"""AlpacaEval's figures: win rates, and the length-controlled win rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragalign.errors import DataError
from ragalign.judging.base import Figures, Verdict
from ragalign.judging.protocols.grouping import figures, observe, split_scored
from ragalign.judging.protocols.length_control import MINIMAL, LengthControl

_TOLERANCE = 1e-6
_N_INSTRUCTIONS = 805
_DATASETS = {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}


def leaderboard_line(protocol: str, verdicts: Sequence[Verdict], control: LengthControl | None) -> Figures:
    """Win rates, their standard error and counts, as in upstream's ``leaderboard.csv``."""
    scored, _ = split_scored(verdicts)
    preferences = np.array([verdict.preference for verdict in scored], dtype=np.float64)
    n = len(scored)
    wins, losses = int((preferences > 0.5).sum()), int((preferences < 0.5).sum())
    readable = [verdict for verdict in verdicts if "len_2" in verdict.metadata]
    lengths = [verdict.metadata["len_2"] for verdict in readable]
    values: dict[str, Any] = {
        "win_rate": 100 * float(preferences.mean()) if n else None,
        "standard_error": 100 * float(preferences.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": n - wins - losses,
        "n_total": n,
        "discrete_win_rate": 100 * (wins + (n - wins - losses) / 2) / n if n else None,
        "avg_length": int(sum(lengths) / len(lengths)) if lengths else None,
    }
    notes: list[str] = []
    resampled: dict[str, tuple[float, ...]] = {}
    if control is not None:
        controlled, note, resampled = _control(control, readable)
        values |= controlled
        notes += note
    checked = [verdict for verdict in verdicts if "rederived" in verdict.metadata]
    if checked:
        values["n_rederived"] = len(checked)
        values["n_rederived_differing"] = sum(_differs(verdict) for verdict in checked)
    observed = {
        "win_rate": observe(verdicts, lambda v: None if v.preference is None else 100 * v.preference, is_share=True),
        "discrete_win_rate": observe(verdicts, _discrete, is_share=True),
    }
    return figures(protocol, verdicts, values, observed, notes, resampled=resampled)


def _control(
    control: LengthControl, verdicts: Sequence[Verdict]
) -> tuple[dict[str, Any], list[str], dict[str, tuple[float, ...]]]:
    if not verdicts:
        return {"length_controlled_winrate": None}, ["no length-controlled win rate: no row could be read"], {}
    source = verdicts[0].metadata.get("source")
    folder = [Path(source).resolve().parent.name] if isinstance(source, str) else []
    unknown = float("nan")
    try:
        result = control.control(
            [verdicts[0].model, *folder],
            np.array([unknown if v.preference is None else v.preference for v in verdicts], dtype=np.float64),
            np.array([v.metadata["len_1"] - v.metadata["len_2"] for v in verdicts], dtype=np.float64),
            np.array([v.metadata.get("position", i) for i, v in enumerate(verdicts)], dtype=np.int64),
        )
    except DataError as error:
        return {"length_controlled_winrate": None}, [f"no length-controlled win rate: {error}"], {}
    details: dict[str, Any] = {"glm_name": result.glm}
    if result.standard_error is not None:
        details["lc_standard_error"] = result.standard_error
    if result.c is not None:
        details["glm_c"] = result.c
    if result.glm == MINIMAL and not control.by_name and _is_leaderboard_set(verdicts):
        unknown_values = {"length_controlled_winrate": None, "length_controlled_winrate_minimal": result.win_rate}
        note = (
            "no length_controlled_winrate: AlpacaEval's own instructions need instruction difficulties and published "
            f"weights or df_gamed rows; length_controlled_winrate_minimal is upstream's {MINIMAL}, without difficulties"
        )
        return {**unknown_values, **details}, [note], {"length_controlled_winrate_minimal": result.resampled}
    values = {"length_controlled_winrate": result.win_rate}
    return {**values, **details}, [], {"length_controlled_winrate": result.resampled}


def _is_leaderboard_set(verdicts: Sequence[Verdict]) -> bool:
    """Whether these are AlpacaEval's own 805 instructions, for which the leaderboard defines the figure."""
    return len(verdicts) == _N_INSTRUCTIONS and {str(v.metadata.get("dataset")) for v in verdicts} <= _DATASETS


def _discrete(verdict: Verdict) -> float:
    return 50.0 + 50.0 * float(np.sign((verdict.preference or 0.0) - 0.5))


def _differs(verdict: Verdict) -> bool:
    stored, rederived = verdict.preference, verdict.metadata["rederived"]
    if stored is None or rederived is None:
        return stored is not rederived
    return bool(abs(stored - rederived) > _TOLERANCE)
