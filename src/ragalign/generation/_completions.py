"""What a request to ``/v1/completions`` says of decoding, whoever sends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragalign.types import Decoding


def decoding_fields(decoding: Decoding, stops: Sequence[str], sample: int) -> dict[str, Any]:
    """The fields of OpenAI's protocol for one sample; a seed is moved on by `sample`.

    ``repetition_penalty`` is none of them: those who send it put it where their client wants it.
    """
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
    return fields
