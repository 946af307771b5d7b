"""Decoding parameters for transformers' `generate`, per request, with vLLM's semantics and order."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ragalign.types import Decoding


def sampler(decoding: Decoding, prompt_mask: Any, seeds: Sequence[int | None], end_ids: Collection[int] = ()) -> Any:
    """Create a logits processor that gives the sampled token of each row the highest score.

    As in vLLM, forbidden end tokens and biases are applied first, then penalties, temperature, min-p, top-k and top-p.
    The maximum of log-probabilities plus Gumbel noise is an exact sample (Gumbel-max), so each row can have its own
    random stream while `generate` always takes the highest score.

    Args:
        decoding: the decoding parameters.
        prompt_mask: torch int64 [b, t], 1 for tokens and 0 for left padding, which must not be penalised.
        seeds: one seed per row; None chooses a random one.
        end_ids: tokens that end an answer, forbidden for the first `Decoding.min_tokens` tokens.
    """
    import torch
    from transformers import LogitsProcessor

    generators = []
    for seed in seeds:
        generator = torch.Generator(device="cpu")
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        generators.append(generator)

    class Sampler(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.float().clone()
            if input_ids.shape[1] - prompt_mask.shape[1] < decoding.min_tokens:
                scores[:, list(end_ids)] = -torch.inf
            for token, bias in dict(decoding.logit_bias).items():
                scores[:, token] += bias
            scores = _penalised(decoding, prompt_mask, input_ids, scores)
            if decoding.temperature == 0:
                return scores
            scores = _likely(torch.log_softmax(scores / decoding.temperature, dim=-1), decoding.min_p, decoding.top_k)
            scores = _nucleus(scores, decoding.top_p)
            noise = torch.stack([torch.rand(scores.shape[1], generator=generator) for generator in generators])
            return scores - torch.log(-torch.log(noise.clamp_min(1e-30).to(scores.device)))

    return Sampler()


def stopper(push: Sequence[Callable[[int], bool]]) -> Any:
    """Create a stopping criterion that passes each row its newest token, and stops the rows that return True."""
    import torch
    from transformers import StoppingCriteria

    class Stopper(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            newest = input_ids[:, -1].tolist()
            finished = [row(token_id) for row, token_id in zip(push, newest, strict=True)]
            return torch.tensor(finished, device=input_ids.device)

    return Stopper()


def _penalised(decoding: Decoding, prompt_mask: Any, input_ids: Any, scores: Any) -> Any:
    """Repetition penalty over prompt and output tokens; the other penalties over output tokens."""
    import torch

    width = prompt_mask.shape[1]
    counts = torch.zeros_like(scores)
    counts.scatter_add_(1, input_ids[:, width:], torch.ones_like(input_ids[:, width:], dtype=scores.dtype))
    if decoding.output_repetition_penalty != 1:
        scores = _repeated(scores, counts > 0, decoding.output_repetition_penalty)
    if decoding.repetition_penalty != 1:
        in_prompt = torch.zeros_like(scores)
        in_prompt.scatter_add_(1, input_ids[:, :width], prompt_mask.to(scores.dtype))
        scores = _repeated(scores, (in_prompt > 0) | (counts > 0), decoding.repetition_penalty)
    return scores - decoding.frequency_penalty * counts - decoding.presence_penalty * (counts > 0)


def _repeated(scores: Any, seen: Any, penalty: float) -> Any:
    """Lower the scores of seen tokens (Keskar et al. 2019, arXiv 1909.05858)."""
    import torch

    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def _likely(log_probabilities: Any, min_p: float, top_k: int) -> Any:
    """Keep tokens at least `min_p` times as likely as the best one, and the `top_k` best of them (0 is all)."""
    import torch

    if min_p > 0:
        best = log_probabilities.max(dim=-1, keepdim=True).values
        log_probabilities = log_probabilities.masked_fill(log_probabilities < best + math.log(min_p), -torch.inf)
    if 0 < top_k < log_probabilities.shape[-1]:
        last = torch.topk(log_probabilities, top_k, dim=-1).values[:, -1:]
        log_probabilities = log_probabilities.masked_fill(log_probabilities < last, -torch.inf)
    return torch.log_softmax(log_probabilities, dim=-1)


def _nucleus(log_probabilities: Any, top_p: float) -> Any:
    """Keep the smallest set of most likely tokens whose probabilities reach `top_p`."""
    import torch

    if top_p == 1:
        return log_probabilities
    ordered, order = torch.sort(log_probabilities, descending=True, dim=-1)
    before = torch.cumsum(ordered.exp(), dim=-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(ordered).scatter_(1, order, ordered)
