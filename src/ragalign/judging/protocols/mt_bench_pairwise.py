"""MT-Bench with pairwise comparison in both orders; a disagreement between the orders is a tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragalign.errors import DataError
from ragalign.judging.base import Decision, Figures, Judgement, Protocol, UnreadableReplyError, Verdict
from ragalign.judging.protocols.grouping import figures, group, mean, observe, split_scored, unit
from ragalign.judging.protocols.mt_bench import (
    PARAMETERS,
    check_turns,
    conversation,
    judge_name,
    load_prompts,
    prompt_name,
    question_id,
    row_text,
    upstream_id,
)
from ragalign.judging.requests import Answer, Item, Json, JudgeReply, JudgeRequest

_LABELS = {"[[A]]": 1.0, "[[B]]": 0.0, "[[C]]": 0.5}
_FAILED = "$ERROR$"


class MtBenchPairwise(Protocol):
    """Compares two answers per turn, in both orders.

    Args:
        strict: reject a reply with two different labels; upstream looks for A first, then B, then C.
        prompt_file: FastChat's ``judge_prompts.jsonl``.
    """

    name = "mt-bench-pairwise"
    is_pairwise = True
    file_format = "jsonl"

    def __init__(self, *, strict: bool = False, prompt_file: str | Path | None = None) -> None:
        super().__init__(strict=strict)
        shown = ("answer_a_1", "answer_b_1", "answer_a_2", "answer_b_2")
        self._prompts = load_prompts(prompt_file, "pair", ("answer_a", "answer_b"), shown)

    def build(self, item: Item) -> list[JudgeRequest]:
        """Two requests per turn: one with the model first, one with the baseline first."""
        if item.baseline is None:
            raise DataError(f"item {item.id!r} has no baseline answer, which the protocol {self.name} needs")
        requests = []
        for turn in check_turns(item, item.answer, item.baseline):
            prompt = self._prompts[prompt_name("pair", "v2", item, turn)]
            for swapped, pair in ((False, (item.answer, item.baseline)), (True, (item.baseline, item.answer))):
                values = conversation(item, turn)
                for letter, answer in zip("ab", pair, strict=True):
                    values[f"answer_{letter}"] = answer.turns[0]
                    values |= {f"answer_{letter}_{i}": text for i, text in enumerate(answer.turns[:turn], start=1)}
                requests.append(
                    JudgeRequest(
                        f"{item.id}/{item.sample}/turn-{turn}" + ("/swapped" if swapped else ""),
                        item,
                        prompt.render(values),
                        PARAMETERS,
                        swapped,
                        turn,
                        prompt.name,
                    )
                )
        return requests

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """The label in double brackets."""
        found = [label for label in _LABELS if label in reply.text]
        if not found:
            raise UnreadableReplyError("none of the labels [[A]], [[B]] and [[C]]")
        if self.strict and len(found) > 1:
            raise UnreadableReplyError(f"more than one label: {' and '.join(found)}")
        first = _LABELS[found[0]]
        return Decision(preference=1 - first if request.swapped else first)

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """Wins, losses and ties of every model in the comparisons, including the baselines.

        As upstream does, a comparison with an unreadable game is left out; it counts as unscored.
        """
        games = group(verdicts, lambda v: (unit(v), v.metadata.get("row")))
        comparisons = [_settle_games(pair) for pair in games]
        sides = comparisons + [_mirror(comparison) for comparison in comparisons if comparison.baseline is not None]
        tables = group(sides, lambda v: (v.model, v.judge))
        return [self._figures(members) for members in tables]

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """Both games of a row, parsed from their judgements, or from the stored winners if there is no text."""
        question, judge = question_id(row), judge_name(row)
        model_1, model_2 = row_text(row, "model_1"), row_text(row, "model_2")
        turn = row.get("turn", 1)
        if turn not in (1, 2):
            raise DataError(f"the turn is {turn!r}, not 1 or 2")
        verdicts = []
        for game, swapped in ((1, False), (2, True)):
            stored = row.get(f"g{game}_winner", row.get("winner"))
            metadata = {"source": source, "row": position} | ({"stored": stored} if isinstance(stored, str) else {})
            item = Item(question, ("",), Answer(model_1, ("",)), Answer(model_2, ("",)), metadata=metadata)
            text = row.get(f"g{game}_judgment")
            suffix = f"/turn-{turn}/game-{game}"
            if isinstance(text, str) and "m1_score" not in row:
                verdicts.append(self.parse_recorded(item, text, judge, swapped=swapped, turn=turn, suffix=suffix))
            elif isinstance(stored, str):
                verdict = self.parse_recorded(item, _label(stored), judge, swapped=False, turn=turn, suffix=suffix)
                reason = None if verdict.is_scored else f"the stored winner is {stored!r}"
                raw = text if isinstance(text, str) else ""
                verdicts.append(replace(verdict, swapped=swapped, raw=raw, reason=reason))
            else:
                raise DataError(f"neither a string 'g{game}_judgment' nor a 'g{game}_winner'")
        return verdicts

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """Rows of ``model_judgment/<judge>_pair.jsonl``; an unreadable game has the winner ``error``."""
        rows = []
        for pair in group(judgements, lambda judgement: unit(judgement.verdict)):
            games = {bool(judgement.verdict.swapped): judgement for judgement in pair}
            some = pair[0]
            row: dict[str, Any] = {
                "question_id": upstream_id(some.item.id),
                "model_1": some.verdict.model,
                "model_2": some.verdict.baseline,
                "g1_winner": _winner(games.get(False)),
                "g2_winner": _winner(games.get(True)),
                "judge": [some.verdict.judge, some.request.prompt_name if some.request else ""],
            }
            for number, swapped in ((1, False), (2, True)):
                game = games.get(swapped)
                request = game.request if game else None
                row[f"g{number}_user_prompt"] = request.messages[-1].content if request else ""
                row[f"g{number}_judgment"] = (game.verdict.raw if game else "") or _FAILED
            stamps = [
                judgement.reply.created for judgement in pair if judgement.reply and judgement.reply.created is not None
            ]
            rows.append({**row, "turn": some.verdict.turn, "tstamp": max(stamps, default=None)})
        return rows

    def context(self, item: Item) -> Json:
        """The stored winner of a replayed game."""
        return {key: item.metadata[key] for key in ("source", "row", "stored") if key in item.metadata}

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        scored, _ = split_scored(verdicts)
        outcomes = {"win": 1.0, "loss": 0.0, "tie": 0.5}
        counts = {name: sum(v.preference == outcome for v in scored) for name, outcome in outcomes.items()}
        observed = {
            "win_rate": observe(verdicts, lambda v: 100.0 * (v.preference == 1), is_share=True),
            "loss_rate": observe(verdicts, lambda v: 100.0 * (v.preference == 0), is_share=True),
            "win_rate_adjusted": observe(verdicts, lambda v: 100 * (v.preference or 0.0), is_share=True),
        }
        values: dict[str, Any] = {"mode": "pairwise", **counts}
        values |= {name: mean(observations) for name, observations in observed.items()}
        values["n_inconsistent"] = sum(bool(v.metadata.get("inconsistent")) for v in scored)
        return figures(self.name, verdicts, values, observed)


def _settle_games(games: Sequence[Verdict]) -> Verdict:
    """The verdict of a comparison: the winner if both games have the same, else a tie."""
    unscored = [game for game in games if not game.is_scored]
    if unscored:
        return replace(unscored[0], swapped=None)
    if {game.swapped for game in games} != {False, True}:
        return replace(games[0], swapped=None, preference=None, reason="only one order was judged")
    winners = {game.preference for game in games}
    consistent = len(winners) == 1
    metadata = {**games[0].metadata, "inconsistent": not consistent}
    return replace(games[0], preference=winners.pop() if consistent else 0.5, swapped=None, metadata=metadata)


def _mirror(verdict: Verdict) -> Verdict:
    preference = None if verdict.preference is None else 1 - verdict.preference
    return replace(verdict, model=verdict.baseline or "", baseline=verdict.model, preference=preference)


def _winner(game: Judgement | None) -> str:
    preference = game.verdict.preference if game else None
    return {1.0: "model_1", 0.0: "model_2", 0.5: "tie"}.get(preference, "error") if preference is not None else "error"


def _label(winner: str) -> str:
    return {"model_1": "[[A]]", "model_2": "[[B]]", "tie": "[[C]]"}.get(winner, winner)
