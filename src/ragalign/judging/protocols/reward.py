"""Protocols of reward models: the reward of each answer, or which of two answers has the higher reward.

Rewards have no fixed scale, so they can only be compared between answers to the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ragalign._parsing import parse_json
from ragalign.errors import DataError
from ragalign.judging.base import Decision, Figures, Judgement, Protocol, UnreadableReplyError, Verdict
from ragalign.judging.protocols.grouping import figures, group, line, mean, observe
from ragalign.judging.requests import Item, Json, JudgeParameters, JudgeReply, JudgeRequest
from ragalign.types import Turn


class Reward(Protocol):
    """The reward of each answer; higher is better.

    Args:
        strict: has no effect, since there is no text to parse.
    """

    name = "reward"
    is_pairwise = False
    file_format = "jsonl"
    asks_reward_models = True

    def build(self, item: Item) -> list[JudgeRequest]:
        """One request: the conversation and its last answer."""
        return [self._request(item, item.answer.turns)]

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """The reward."""
        [reward] = self._rewards(reply, 1)
        return Decision({"score": reward})

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """The mean reward."""
        return [self._figures(members) for members in group(verdicts, line)]

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """Not supported: no upstream tool writes such rows.

        Raises:
            DataError: always.
        """
        raise DataError("rewards have no upstream file format: read them from verdicts.jsonl of `ragalign judge run`")

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """No rows: no upstream tool reads rewards."""
        return []

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        observed = {"avg_reward": observe(verdicts, lambda verdict: verdict.scores["score"])}
        return figures(
            self.name, verdicts, {name: mean(observations) for name, observations in observed.items()}, observed
        )

    def _request(self, item: Item, *answers: Sequence[str]) -> JudgeRequest:
        """The judged model's conversation up to the last user turn, then the last answer of each model."""
        if any(len(answer) < len(item.turns) for answer in answers):
            raise DataError(f"item {item.id!r} has fewer answers than turns")
        messages: list[Turn] = []
        for number, text in enumerate(item.turns):
            messages.append(Turn("user", text))
            if number < len(item.turns) - 1:
                messages.append(Turn("assistant", item.answer.turns[number]))
        messages += [Turn("assistant", answer[len(item.turns) - 1]) for answer in answers]
        return JudgeRequest(f"{item.id}/{item.sample}", item, tuple(messages), JudgeParameters())

    def _rewards(self, reply: JudgeReply, n: int) -> list[float]:
        try:
            found = parse_json(reply.text)
        except ValueError:
            found = None
        if (
            not isinstance(found, list)
            or len(found) != n
            or not all(isinstance(reward, int | float) for reward in found)
        ):
            raise UnreadableReplyError(f"the judge did not return {n} rewards; is it a reward model (reward:MODEL)?")
        try:
            rewards = [float(reward) for reward in found]
        except OverflowError:
            rewards = [math.inf]
        if not all(map(math.isfinite, rewards)):
            raise UnreadableReplyError("a reward is not a finite number")
        return rewards


class RewardPairwise(Reward):
    """The higher reward wins; equal rewards are a draw. Answers are scored separately, so there is no position bias.

    Only conversations with one turn can be compared, since later turns follow different answers.
    """

    name = "reward-pairwise"
    is_pairwise = True

    def build(self, item: Item) -> list[JudgeRequest]:
        """One request with both answers."""
        if item.baseline is None:
            raise DataError(f"item {item.id!r} has no baseline answer, which the protocol {self.name} needs")
        if len(item.turns) > 1:
            raise DataError(f"item {item.id!r} has several turns; use the protocol reward")
        return [self._request(item, item.answer.turns, item.baseline.turns)]

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """Both rewards, and the preference."""
        model, baseline = self._rewards(reply, 2)
        return Decision({"model": model, "baseline": baseline}, 0.5 if model == baseline else float(model > baseline))

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        observed = {
            "win_rate": observe(verdicts, lambda verdict: _percent(verdict, 1.0), is_share=True),
            "draw_rate": observe(verdicts, lambda verdict: _percent(verdict, 0.5), is_share=True),
            "lose_rate": observe(verdicts, lambda verdict: _percent(verdict, 0.0), is_share=True),
            "avg_reward_model": observe(verdicts, lambda verdict: verdict.scores["model"]),
            "avg_reward_baseline": observe(verdicts, lambda verdict: verdict.scores["baseline"]),
        }
        return figures(
            self.name, verdicts, {name: mean(observations) for name, observations in observed.items()}, observed
        )


def _percent(verdict: Verdict, preference: float) -> float:
    return 100.0 * (verdict.preference == preference)
