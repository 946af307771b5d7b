"""Questions for judges: requests of a protocol, grouped so that each question is asked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

from ragalign.judging.base import Judgement, Protocol, Verdict
from ragalign.judging.cache import ReplyCache, reply_key
from ragalign.judging.judges import AnyJudge
from ragalign.judging.requests import Item, JudgeReply, JudgeRequest


@dataclass(slots=True)
class JudgeQuestion:
    """A prompt for a judge, with the replies so far.

    Attributes:
        key: its key in the cache.
        requests: all requests with this prompt, such as those of two equal answers.
        replies: replies, oldest first.
        reason: why there is no (further) reply; None before the first attempt.
    """

    key: str
    requests: list[JudgeRequest]
    replies: list[JudgeReply]
    reason: str | None = None

    def is_open(self, protocol: Protocol, tries: int) -> bool:
        """Whether to ask (again): no reply could be parsed, and `tries` is not used up."""
        return len(self.replies) < tries and not any(self._is_readable(protocol, reply) for reply in self.replies)

    def _is_readable(self, protocol: Protocol, reply: JudgeReply) -> bool:
        return all(protocol.parse(request, reply).is_scored for request in self.requests)


@dataclass(frozen=True, slots=True)
class Slot:
    """A pending verdict: settled without a judge, or based on a question's replies."""

    judge: AnyJudge
    item: Item
    settled: Verdict | None = None
    request: JudgeRequest | None = None
    question: JudgeQuestion | None = None

    def judgement(self, protocol: Protocol) -> Judgement:
        """The verdict from the first reply that can be parsed, or else unscored with a reason."""
        if self.request is None or self.question is None:
            if self.settled is None:
                raise ValueError("a slot is settled or has a question")
            return Judgement(self.item, self.settled)
        request, question = self.request, self.question
        if not question.replies:
            verdict = protocol.unscored(request, question.reason or "not asked", judge=self.judge.name)
            return Judgement(self.item, verdict, request)
        verdicts = [protocol.parse(request, reply) for reply in question.replies]
        chosen = next((at for at, verdict in enumerate(verdicts) if verdict.is_scored), len(verdicts) - 1)
        usages = [reply.usage for reply in question.replies if reply.usage is not None]
        # Count the usage of all replies, including those that could not be parsed.
        verdict = replace(verdicts[chosen], usage=reduce(add, usages) if usages else None)
        return Judgement(self.item, verdict, request, question.replies[chosen])


@dataclass(frozen=True, slots=True)
class Work:
    """All pending verdicts in order, and each judge's distinct questions."""

    slots: list[Slot] = field(default_factory=list)
    questions: dict[str, list[JudgeQuestion]] = field(default_factory=dict)

    @classmethod
    def prepare(cls, protocol: Protocol, items: Sequence[Item], judges: Sequence[AnyJudge], cache: ReplyCache) -> Work:
        """Build the requests of all items, and look up replies in the cache.

        Raises:
            DataError: an item lacks what the protocol needs.
        """
        work = cls()
        # An item settled for one judge is settled for all; only the name in the verdict differs.
        asks = [None if protocol.settle(item, judges[0].name) else protocol.build(item) for item in items]
        for judge in judges:
            known: dict[str, JudgeQuestion] = {}
            for item, requests in zip(items, asks, strict=True):
                if requests is None:
                    work.slots.append(Slot(judge, item, settled=protocol.settle(item, judge.name)))
                for request in requests or ():
                    key = reply_key(judge.name, request.as_body())
                    question = known.get(key)
                    if question is None:
                        question = known[key] = JudgeQuestion(key, [], cache.get(key))
                    question.requests.append(request)
                    work.slots.append(Slot(judge, item, request=request, question=question))
            work.questions[judge.name] = list(known.values())
        return work
