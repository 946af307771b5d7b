"""The scheduler's side: which tokens of a request can be loaded, and into which blocks. No tensors here."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ragalign.errors import DataError
from ragalign.reuse.loading import Load, Segment
from ragalign.reuse.pieces import piece_name
from ragalign.reuse.recording import Capture
from ragalign.reuse.store import Store
from ragalign.reuse_plan import ReusePlan

_log = logging.getLogger(__name__)


@dataclass
class _Request:
    """The state of a request that carries a plan."""

    plan: ReusePlan
    segments: tuple[Segment, ...]
    name: str  # of the piece to keep
    first: int = 0  # the first token to load
    end: int = 0  # one past the last token that need not be computed
    n_loaded: int = 0
    counted: bool = False  # whether `end` and `n_loaded` are set: a request can come back after preemption
    blocks: list[int] = field(default_factory=list)


class Matcher:
    """Answers the scheduler's questions about requests.

    Args:
        store: what is kept.
        block_size: tokens per block of the engine's cache.
    """

    def __init__(self, store: Store, block_size: int) -> None:
        self._store = store
        self._block_size = block_size
        self._requests: dict[str, _Request] = {}
        self._refused: set[str] = set()
        self._gone: set[str] = set()
        self._loads: list[Load] = []
        self.counts: Mapping[str, int] = {}

    def n_loadable(self, request: Any, n_computed: int) -> int:
        """How many tokens after the first `n_computed` can be loaded; 0 for requests without a plan."""
        known = self._look_up(request)
        if known is None:
            return 0
        end = 0
        for segment in known.segments:
            if not self._store.has(segment.name):
                if segment.name not in self._gone:
                    self._gone.add(segment.name)
                    _log.warning("%s: gone; its tokens are computed", self._store.path(segment.name))
                break
            self._gone.discard(segment.name)
            end = segment.end
        # At least one token is computed, since its logits are needed.
        end = min(end, request.num_tokens - 1)
        known.first, known.end = n_computed, max(end, n_computed)
        return known.end - n_computed

    def allocated(self, request: Any, blocks: Sequence[int], n_external: int) -> None:
        """Record the blocks of a request, which include those for `n_external` tokens to load."""
        known = self._requests.get(request.request_id)
        if known is None:
            return
        end = known.first + n_external
        if not known.counted:
            known.end, known.n_loaded, known.counted = end, n_external, True
        if n_external:
            known.blocks = list(blocks)
            needed = tuple(segment for segment in known.segments if segment.start < end and segment.end > known.first)
            self._loads.append(Load(request.request_id, needed, known.first, end, tuple(blocks)))

    def take_step(self, scheduler_output: Any) -> tuple[list[Load], list[Capture]]:
        """The workers' tasks in this step."""
        loads, self._loads = self._loads, []
        return loads, self._captures(scheduler_output)

    def failed(self, blocks: Collection[int]) -> None:
        """Record blocks that could not be filled: the engine computes them and all that follow."""
        if not blocks:
            return
        for known in self._requests.values():
            for number, block in enumerate(known.blocks):
                if block in blocks and number * self._block_size < known.end:
                    known.n_loaded -= max(0, known.end - max(known.first, number * self._block_size))
                    known.end = number * self._block_size
                    break

    def finished(self, request: Any) -> dict[str, Any] | None:
        """Forget a request; returns how much it reused, for the client."""
        self._refused.discard(request.request_id)
        known = self._requests.pop(request.request_id, None)
        if known is None:
            return None
        start, stop = known.plan.n_prefix_tokens, known.plan.n_prefix_tokens + known.plan.n_tokens
        return {
            "ragalign": {
                "n_reused_tokens": max(0, min(known.end, stop) - start),
                "n_ready_tokens": known.end,
                "n_loaded_tokens": max(0, known.n_loaded),
                "counts": dict(self.counts),
            }
        }

    def _look_up(self, request: Any) -> _Request | None:
        id_ = request.request_id
        if id_ in self._requests or id_ in self._refused:
            return self._requests.get(id_)
        params = (request.kv_transfer_params or {}).get("ragalign")
        if params is None:
            return None
        try:
            known = self._checked(request, ReusePlan.from_params(params))
        except DataError as error:
            # The request is still answered, with everything computed.
            _log.warning("request %s: %s; all of its tokens are computed", id_, error)
            self._refused.add(id_)
            return None
        self._requests[id_] = known
        return known

    def _checked(self, request: Any, plan: ReusePlan) -> _Request:
        """Check a request's plan against the store and the request's token ids, which decide what is loaded."""
        if plan.key != self._store.key:
            raise DataError("its plan is for another store of keys and values")
        if not plan.accepts(request.cache_salt):
            raise DataError("it lacks the cache salt that keeps reused blocks apart from computed ones")
        if request.lora_request is not None:
            raise DataError("keys and values are kept for the model without adapters")
        if request.skip_reading_prefix_cache:
            raise DataError("log-probabilities of the prompt need all of it computed")
        if request.prompt_token_ids is None:
            raise DataError("it has no token ids")
        ids = np.asarray(request.prompt_token_ids, dtype=np.int32)
        n_prefix = plan.n_prefix_tokens
        if tuple(ids[:n_prefix].tolist()) != self._store.manifest.prefix_ids or n_prefix + plan.n_tokens > len(ids):
            raise DataError("its prompt does not begin with the prefix that keys and values were computed after")
        segments = [Segment(self._store.prefix_name, 0, n_prefix, moved=False)] if n_prefix else []
        start = n_prefix
        for n_tokens in () if plan.keep else plan.lengths:
            segments.append(Segment(piece_name(ids[start : start + n_tokens]), start, start + n_tokens))
            start += n_tokens
        if plan.keep and not plan.lengths:
            segments = []  # keep the prefix itself
        name = piece_name(ids[n_prefix : n_prefix + plan.n_tokens]) if plan.lengths else self._store.prefix_name
        return _Request(plan, tuple(segments), name)

    def _captures(self, output: Any) -> list[Capture]:
        """For requests whose keys and values are kept: the tokens that this step computes, and their blocks."""
        keeping = {id_: known for id_, known in self._requests.items() if known.plan.keep}
        if not keeping:
            return []
        captures = []
        for new in output.scheduled_new_reqs:
            if (known := keeping.get(new.req_id)) is not None:
                known.blocks = list(new.block_ids[0])
                captures.append(self._capture(new.req_id, known, new.num_computed_tokens, output))
        cached = output.scheduled_cached_reqs
        for id_, more, n_computed in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True):
            if (known := keeping.get(id_)) is not None:
                resumed = id_ in getattr(cached, "resumed_req_ids", ())
                known.blocks = ([] if resumed else known.blocks) + ([] if more is None else list(more[0]))
                captures.append(self._capture(id_, known, n_computed, output))
        return captures

    def _capture(self, id_: str, known: _Request, n_computed: int, output: Any) -> Capture:
        plan = known.plan
        start = plan.n_prefix_tokens if plan.lengths else 0
        stop = plan.n_prefix_tokens + plan.n_tokens
        first, end = max(start, n_computed), min(stop, n_computed + output.num_scheduled_tokens[id_])
        return Capture(id_, known.name, start, stop, first, max(first, end), tuple(known.blocks))
