"""Reward models as judges: sequence classifiers in transformers that score an answer.

They need no server and no judge prompt: the model reads the conversation in its own chat template.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Protocol, Self

from ragalign.errors import ConfigError
from ragalign.judging.budget import Ledger
from ragalign.judging.judges import RewardJudge
from ragalign.judging.pricing import Quote
from ragalign.judging.requests import JudgeReply, JudgeUsage
from ragalign.judging.retries import FinalError


class RewardModel:
    """A loaded reward model.

    Args:
        judge: the reward model to load.

    Raises:
        ConfigError: it cannot be loaded, or has more than one output.
    """

    def __init__(self, judge: RewardJudge) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = str(Path(judge.model).expanduser())
        device = judge.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
        # transformers lets through any exception of its loaders.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"cannot load the reward model {judge.model!r}: {reason}") from None
        if model.config.num_labels != 1:
            raise ConfigError(f"{judge.model!r} has {model.config.num_labels} outputs; a reward model has one")
        self._model = model.to(device).eval()
        limits = (getattr(model.config, "max_position_embeddings", None), self._tokenizer.model_max_length)
        self._limit = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
        self._lock = Lock()

    def score(self, messages: Sequence[Mapping[str, str]]) -> tuple[float, int]:
        """The reward of the last message, an answer to those before it, and the number of tokens read.

        Raises:
            FinalError: the conversation is longer than the model's context.
        """
        import torch

        ids = self._ids(messages)
        if len(ids) > self._limit:
            raise FinalError(f"question and answer take {len(ids):,} tokens; the reward model reads {self._limit:,}")
        with self._lock, torch.inference_mode():
            logits = self._model(torch.tensor([ids], device=self._model.device)).logits
        return float(logits[0, 0]), len(ids)

    def _ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if getattr(self._tokenizer, "chat_template", None):
            found = self._tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True)
            return list(found["input_ids"])
        # Models without a chat template were trained on pairs of a question and an answer.
        question = "\n\n".join(message["content"] for message in messages[:-1])
        return list(self._tokenizer(question, messages[-1]["content"])["input_ids"])


class RewardModels(Protocol):
    """Scores answers by the reward model of any judge, and is a context manager that releases the models.

    Attributes:
        n_at_once: number of answers that are scored at the same time.
    """

    n_at_once: int

    def __enter__(self) -> RewardModels: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def score(self, judge: RewardJudge, messages: Sequence[Mapping[str, str]]) -> tuple[float, int]:
        """As `RewardModel.score`; can be called from several threads.

        Raises:
            ConfigError: the model cannot be loaded.
            RequestError: the answer could not be scored.
        """
        ...


class LocalRewardModels:
    """The reward models of this process, each loaded when it is first needed."""

    n_at_once = 1  # a model uses the whole machine

    def __init__(self) -> None:
        self._loaded: dict[RewardJudge, RewardModel] = {}
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loaded.clear()

    def score(self, judge: RewardJudge, messages: Sequence[Mapping[str, str]]) -> tuple[float, int]:
        """As `RewardModel.score`.

        Raises:
            ConfigError, FinalError: as `RewardModel`.
        """
        with self._lock:
            if judge not in self._loaded:
                self._loaded[judge] = RewardModel(judge)
        return self._loaded[judge].score(messages)


class RewardClient:
    """Asks a reward model, with the interface of `ChatClient`.

    The answers are the assistant messages at the end of a request; the reply is a JSON list of their rewards.

    Args:
        judge: the reward model.
        ledger: books each request.
        models: scores the answers.
    """

    def __init__(self, judge: RewardJudge, ledger: Ledger, models: RewardModels) -> None:
        self.judge = judge
        self.n_requests = 0
        self.notes: tuple[str, ...] = ()
        self._ledger = ledger
        self._models = models
        self._turns = asyncio.Semaphore(models.n_at_once)
        self._threads = ThreadPoolExecutor(models.n_at_once)

    async def aclose(self) -> None:
        """Wait for what is being scored."""
        await asyncio.to_thread(self._threads.shutdown)

    async def ask(self, body: Mapping[str, Any], *, n_tokens: int, quote: Quote) -> JudgeReply:
        """Score the answers.

        Raises:
            BudgetSpentError: the limit on requests is reached.
            ConfigError: the model cannot be loaded.
            RequestError: an answer is too long for the model, or a worker failed.
        """
        async with self._turns:
            await self._ledger.reserve(quote.at_most)
            self._ledger.settle(quote.at_most, 0.0)
            self.n_requests += 1
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._score, body["messages"])

    def _score(self, messages: Sequence[Mapping[str, str]]) -> JudgeReply:
        started = time.perf_counter()
        first = len(messages)
        while first and messages[first - 1]["role"] == "assistant":
            first -= 1
        found = [self._models.score(self.judge, [*messages[:first], answer]) for answer in messages[first:]]
        return JudgeReply(
            judge=self.judge.name,
            choice={"message": {"role": "assistant", "content": json.dumps([value for value, _ in found])}},
            usage=JudgeUsage(sum(n for _, n in found), 0),
            latency_s=time.perf_counter() - started,
            created=time.time(),
        )
