"""Requests to vLLM's engines and counts in their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from ragalign.stopping import merge_stops
from ragalign.types import Decoding, Prompt


def token_prompt(ids: Sequence[int]) -> dict[str, Any]:
    """Token ids as vLLM's front end passes them to the engine; the key "type" marks them as ready."""
    return {"type": "token", "prompt_token_ids": list(ids)}


def engine_prompt(prompt: Prompt) -> dict[str, Any]:
    """A prompt for the engine; with reused demonstrations, a salt separates its cached blocks from others."""
    salt = {} if prompt.reuse is None else {"cache_salt": prompt.reuse.cache_salt}
    return token_prompt(prompt.token_ids) | salt


def sampling_params(
    prompt: Prompt, decoding: Decoding, sample: int, *, stream: bool = False, logprobs: int | None = None
) -> Any:
    """The vLLM sampling parameters for the `sample`-th answer, with `logprobs` top tokens for each token."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    penalty = decoding.output_repetition_penalty
    extra: dict[str, Any] = {} if penalty == 1 else {"output_repetition_penalty": penalty}
    if prompt.reuse is not None:
        extra["kv_transfer_params"] = prompt.reuse.params()
    return SamplingParams(
        n=1,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_tokens=decoding.max_tokens,
        seed=None if decoding.seed is None else decoding.seed + sample,
        repetition_penalty=decoding.repetition_penalty,
        presence_penalty=decoding.presence_penalty,
        frequency_penalty=decoding.frequency_penalty,
        extra_args=extra or None,
        stop=list(merge_stops(prompt.stop, decoding.stop)),
        top_k=decoding.top_k,
        min_p=decoding.min_p,
        min_tokens=decoding.min_tokens,
        stop_token_ids=list(decoding.stop_token_ids),
        ignore_eos=decoding.ignore_eos,
        logit_bias=dict(decoding.logit_bias) or None,
        logprobs=logprobs,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )


def token_counts(output: Any, prompt: Prompt) -> tuple[int | None, int]:
    """Cached prompt tokens, and tokens of reused demonstrations, which the engine also counts as cached."""
    told = (getattr(output, "kv_transfer_params", None) or {}).get("ragalign")
    if told is not None:  # in the last output
        n_reused = int(told["n_reused_tokens"])
        return max(0, int(told["n_ready_tokens"]) - n_reused), n_reused
    n_cached = output.num_cached_tokens
    if n_cached is None or prompt.reuse is None:
        return n_cached, 0
    # Until then, vLLM's own count, which includes tokens that could not be loaded.
    return prompt.reuse.split(n_cached)


def first_token_s(metrics: Any) -> float | None:
    """Seconds from scheduling to the first token, by the engine's clock."""
    first, scheduled = getattr(metrics, "first_token_ts", 0.0), getattr(metrics, "scheduled_ts", 0.0)
    return first - scheduled if 0 < scheduled <= first else None


def scoring_requests(prompt: Prompt, answer: Sequence[int], top_k: int, *, is_apart: bool) -> list[tuple[Any, Any]]:
    """Two requests: to cache a prompt but for its last token, and for the probabilities of an answer's tokens.

    With `is_apart` they share no cached block with any other request.
    """
    from vllm import SamplingParams

    extra = None if prompt.reuse is None else {"kv_transfer_params": prompt.reuse.params()}
    common = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "extra_args": extra}
    scoring = {"prompt_logprobs": top_k, "flat_logprobs": True, "skip_reading_prefix_cache": False}
    given = engine_prompt(prompt)
    if is_apart:
        name = uuid4().hex
        given["cache_salt"] = name if prompt.reuse is None else prompt.reuse.own_salt(name)
    return [
        (given | {"prompt_token_ids": prompt.token_ids[:-1]}, SamplingParams(**common)),
        (given | {"prompt_token_ids": [*prompt.token_ids, *answer]}, SamplingParams(**common, **scoring)),
    ]
