"""A repetition penalty over output tokens only, as a vLLM logits processor. Engines import this module by name.

vLLM has two model runners with different interfaces. The older one keeps the rows of a batch in order and reports what
moved; the newer one ("V2", on GPUs) keeps requests in slots with their tokens on the device. vLLM takes a single class
and chooses the runner itself, so this class has both interfaces.
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
except ImportError:  # an older vLLM without the second interface
    SlotLogitsProcessor = object

KEY = "output_repetition_penalty"


class OutputRepetitionPenalty(LogitsProcessor, SlotLogitsProcessor):  # type: ignore[misc]
    """Divides positive logits of tokens in the output by the penalty, and multiplies negative ones by it.

    The formula is that of CTRL (Keskar et al. 2019, arXiv 1909.05858), extended to negative logits as in transformers
    and vLLM. Requests set it with ``SamplingParams(extra_args={"output_repetition_penalty": 1.1})``. The older runner
    applies it before presence and frequency penalties, the newer one after them.
    """

    def __init__(self, vllm_config: Any, *of_runner: Any) -> None:
        """The older runner passes the device and whether memory is pinned, the newer one the state of requests."""
        self._slots = _Slots(of_runner[0]) if len(of_runner) == 1 else None
        self._device = of_runner[0]
        self._rows: dict[int, _Row] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Reject invalid penalties.

        Raises:
            ValueError: the penalty is not a finite number above 0.
        """
        penalty = (sampling_params.extra_args or {}).get(KEY, 1.0)
        number = isinstance(penalty, int | float) and not isinstance(penalty, bool)
        if not number or not math.isfinite(penalty) or penalty <= 0:
            raise ValueError(f"{KEY} must be a finite number above 0, not {penalty!r}")

    def is_argmax_invariant(self) -> bool:
        """False: the penalty can change which token is the most likely."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Older runner: update the rows of requests that were added, removed or moved."""
        process_dict_updates(self._rows, batch_update, _row)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Newer runner: assign a request to a slot; returns whether it has the penalty."""
        assert self._slots is not None
        return self._slots.set(req_idx, _penalty(sampling_params))

    def apply_staged_writes(self) -> None:
        """Newer runner: copy the changes of `add_request` to the device."""
        assert self._slots is not None
        self._slots.flush()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Change ``logits`` [rows, vocabulary] in place; only the newer runner passes a context."""
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
            filled[row.n_tokens :] = row.tokens[0]  # repeated tokens count once, see `_penalise`
        numbers = torch.tensor(list(rows), device=self._device)
        penalties = torch.tensor([row.penalty for row in rows.values()], dtype=logits.dtype, device=self._device)
        _penalise(logits, numbers[:, None], torch.from_numpy(tokens).to(self._device), penalties[:, None])
        return logits


@dataclass
class _Row:
    """A request of the older runner. ``output`` is the engine's list, which grows."""

    penalty: float
    output: list[int]
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty(64, dtype=np.int64))
    n_tokens: int = 0
    n_read: int = 0
    seen: set[int] = field(default_factory=set)

    def read(self) -> bool:
        """Read the new tokens of the output; returns whether there is any output."""
        for token in self.output[self.n_read :]:
            if token < 0:  # not known yet: the engine schedules ahead
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
    """The requests of the newer runner. Their tokens stay on the device, without synchronisation."""

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
            # A new tensor, since steps in flight on the device still use the old one.
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
        # Pad with the first token; a request without output gets its token 0 with penalty 1.
        at = torch.where(at < end[:, None], at, first[:, None]).clamp_(max=history.shape[1] - 1)
        has_output = first < end
        tokens = torch.where(has_output[:, None], history[slots[:, None], at].long(), 0)
        penalties = torch.where(has_output, self._penalties[slots], 1.0)
        _penalise(logits, torch.arange(len(slots), device=logits.device)[:, None], tokens, penalties[:, None])
        return logits


def _penalise(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, penalties: torch.Tensor) -> None:
    """Penalise ``tokens`` [r, w] in ``rows`` [r, 1]; repeated tokens of a row count once.

    All logits are read before any is written, so repeated tokens are written with equal values.
    """
    scores = logits[rows, tokens]
    logits[rows, tokens] = torch.where(scores > 0, scores / penalties, scores * penalties)


def _row(params: Any, _prompt: list[int] | None, output: list[int]) -> _Row | None:
    penalty = _penalty(params)
    return None if penalty == 1 else _Row(penalty, output)


def _penalty(params: Any) -> float:
    return float((params.extra_args or {}).get(KEY, 1.0))
