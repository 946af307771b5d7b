"""The decoding fields of requests to ``/v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragalign.types import Decoding

# vLLM's and SGLang's additions to OpenAI's protocol, sent only if set, since other servers reject them.
EXTENSIONS = ("repetition_penalty", "top_k", "min_p", "min_tokens", "stop_token_ids", "ignore_eos")
_NEUTRAL = Decoding()


def decoding_fields(decoding: Decoding, stops: Sequence[str], sample: int) -> dict[str, Any]:
    """The fields of OpenAI's protocol for a sample; its seed is that of the first sample plus `sample`."""
    fields: dict[str, Any] = {
        "max_tokens": decoding.max_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "presence_penalty": decoding.presence_penalty,
        "frequency_penalty": decoding.frequency_penalty,
    }
    if stops:
        fields["stop"] = list(stops)
    if decoding.seed is not None:
        fields["seed"] = decoding.seed + sample
    if decoding.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in decoding.logit_bias}
    return fields


def extension_fields(decoding: Decoding) -> dict[str, Any]:
    """The fields that OpenAI's protocol does not have and that are set."""
    given = {name: getattr(decoding, name) for name in EXTENSIONS if getattr(decoding, name) != getattr(_NEUTRAL, name)}
    if "stop_token_ids" in given:
        given["stop_token_ids"] = list(given["stop_token_ids"])
    return given
