"""A repetition penalty over output tokens only, as a logits processor of vLLM. Engines import this module by name.

vLLM has two model runners with an interface each: the older one keeps rows of a batch in order and tells what moved;
the newer one ("V2", on GPUs) keeps requests in slots with their tokens on the device. vLLM takes one class and
chooses the runner itself, hence one class with both interfaces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SlotLogitsProcessor
except ImportError:  # a vLLM from before the second interface
    SlotLogitsProcessor = object

KEY = "output_repetition_penalty"


class OutputRepetitionPenalty(LogitsProcessor, SlotLogitsProcessor):  # type: ignore[misc]
    """Divides positive logits of tokens that are in the output by the penalty, and multiplies the others by it.

    The formula is that of CTRL (Keskar et al. 2019, arXiv 1909.05858) as transformers and vLLM write it for negative
    logits too. Requests ask for it with ``SamplingParams(extra_args={"output_repetition_penalty": 1.1})``. The
    older runner applies it before presence and frequency penalties, the newer one after them.
    """

    def __init__(self, vllm_config: Any, *of_runner: Any) -> None:
        """The older runner gives the device and whether memory is pinned, the newer one its requests' state."""
        self._slots = _Slots(of_runner[0]) if len(of_runner) == 1 else None
        self._device = of_runner[0]
        self._rows: dict[int, _Row] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse what is no penalty.

        Raises:
            ValueError: it is no finite number above 0.
        """
        penalty = (sampling_params.extra_args or {}).get(KEY, 1.0)
        number = isinstance(penalty, int | float) and not isinstance(penalty, bool)
        if not number or not math.isfinite(penalty) or penalty <= 0:
            raise ValueError(f"{KEY} must be a finite number above 0, not {penalty!r}")

    def is_argmax_invariant(self) -> bool:
        """It changes which token is the most likely."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Older runner: requests that came, went or changed rows."""
        process_dict_updates(self._rows, batch_update, _row)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Newer runner: a request takes a slot; whether it asks for the penalty."""
        assert self._slots is not None
        return self._slots.set(req_idx, _penalty(sampling_params))

    def apply_staged_writes(self) -> None:
        """Newer runner: bring what `add_request` noted to the device."""
        assert self._slots is not None
        self._slots.flush()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Change ``logits`` [rows, vocabulary] in place; only the newer runner gives a context."""
        if ctx is not None:
            assert self._slots is not None
            return self._slots.apply(logits, ctx)
        rows = {number: row for number, row in self._rows.items() if row.read()}
        if not rows:
            return logits
        width = max(row.n_tokens for row in rows.values())
        tokens = np.empty((len(rows), width), dtype=np.int64)
        for filled, row in zip(tokens, rows.values(), strict=True):
            filled[: row.n_tokens] = row.tokens[: row.n_tokens]
            filled[row.n_tokens :] = row.tokens[0]  # twice is as good as once, see `_penalise`
        numbers = torch.tensor(list(rows), device=self._device)
        penalties = torch.tensor([row.penalty for row in rows.values()], dtype=logits.dtype, device=self._device)
        _penalise(logits, numbers[:, None], torch.from_numpy(tokens).to(self._device), penalties[:, None])
        return logits


@dataclass
class _Row:
    """One request of the older runner. ``output`` is the engine's own list, which grows."""

    penalty: float
    output: list[int]
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty(64, dtype=np.int64))
    n_tokens: int = 0
    n_read: int = 0
    seen: set[int] = field(default_factory=set)

    def read(self) -> bool:
        """Take in what is new in the output; whether there is any output."""
        for token in self.output[self.n_read :]:
            if token < 0:  # not known yet: the engine runs ahead
                break
            self.n_read += 1
            if token in self.seen:
                continue
            self.seen.add(token)
            if self.n_tokens == len(self.tokens):
                self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
            self.tokens[self.n_tokens] = token
            self.n_tokens += 1
        return self.n_tokens > 0


class _Slots:
    """The requests of the newer runner. Their tokens stay on the device, and nothing waits for it."""

    def __init__(self, requests: Any) -> None:
        self._requests = requests
        self._host = np.ones(requests.max_num_reqs, dtype=np.float32)
        self._penalties = torch.ones(requests.max_num_reqs, dtype=torch.float32, device=requests.device)
        self._changed = False

    def set(self, slot: int, penalty: float) -> bool:
        self._changed |= bool(self._host[slot] != penalty)
        self._host[slot] = penalty
        return penalty != 1

    def flush(self) -> None:
        if self._changed:
            # A new tensor: steps that are under way on the device keep theirs.
            self._penalties = torch.tensor(self._host, device=self._requests.device)
            self._changed = False

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        asked = self._host[ctx.idx_mapping_np] != 1
        if not asked.any():
            return logits
        in_batch = ctx.idx_mapping_np[asked]
        width = int((ctx.seq_lens_upper_bound_np[asked] - self._requests.prompt_len.np[in_batch]).max())
        if width <= 0:
            return logits
        slots = ctx.expanded_idx_mapping.long()
        history = self._requests.all_token_ids.gpu
        first = self._requests.prompt_len.gpu[slots].long()
        end = torch.minimum(ctx.pos.long() + 1, self._requests.total_len.gpu[slots].long())
        at = first[:, None] + torch.arange(width, device=logits.device)
        # Past the end stands the first token again, and a request without output gets its token 0 times 1.
        at = torch.where(at < end[:, None], at, first[:, None]).clamp_(max=history.shape[1] - 1)
        has_output = first < end
        tokens = torch.where(has_output[:, None], history[slots[:, None], at].long(), 0)
        penalties = torch.where(has_output, self._penalties[slots], 1.0)
        _penalise(logits, torch.arange(len(slots), device=logits.device)[:, None], tokens, penalties[:, None])
        return logits


def _penalise(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, penalties: torch.Tensor) -> None:
    """Penalise ``tokens`` [r, w] in ``rows`` [r, 1]; a token that comes twice in a row counts once.

    All logits are read before one is written, so equal places get equal values.
    """
    scores = logits[rows, tokens]
    logits[rows, tokens] = torch.where(scores > 0, scores / penalties, scores * penalties)


def _row(params: Any, _prompt: list[int] | None, output: list[int]) -> _Row | None:
    penalty = _penalty(params)
    return None if penalty == 1 else _Row(penalty, output)


def _penalty(params: Any) -> float:
    return float((params.extra_args or {}).get(KEY, 1.0))
