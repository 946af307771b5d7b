"""Decoding presets with the papers' values, and checks of decoding parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from ragalign.errors import ConfigError
from ragalign.text import valid_text
from ragalign.types import Decoding

PRESETS: Mapping[str, Decoding] = MappingProxyType(
    {
        # Always the most likely token; the baseline.
        "greedy": Decoding(temperature=0.0),
        # Lin et al. 2023 (arXiv 2312.01552): greedy decoding; repetition penalty 1.1 and 2,048 new tokens
        # as in the run commands of Re-Align/URIAL, which also use temperatures up to 0.3.
        "urial": Decoding(temperature=0.0, top_p=1.0, max_tokens=2048, repetition_penalty=1.1),
        # Han 2023 (arXiv 2308.04275), decode_icl_llama.py of xhan77/in-context-alignment: 1,000 new tokens.
        # The note samples five answers per prompt; set n=5 to reproduce it. Its code also inherits top-k 50, the
        # default of transformers at the time, which the paper does not mention.
        "ica": Decoding(temperature=0.7, top_p=1.0, max_tokens=1000),
        # Zhao et al. 2024 (arXiv 2405.19874), run scripts of tml-epfl/icl-alignment.
        "icl-alignment": Decoding(temperature=0.0, top_p=1.0, max_tokens=2048, repetition_penalty=1.15),
        # The same two with the penalty over output tokens only, so that demonstrations are not penalised.
        "urial-output": Decoding(max_tokens=2048, output_repetition_penalty=1.1),
        "icl-alignment-output": Decoding(max_tokens=2048, output_repetition_penalty=1.15),
        # The same scripts for their mixture-of-experts model (Mixtral-8x22B): no penalty, temperature 0.5.
        "icl-alignment-moe": Decoding(temperature=0.5, top_p=1.0, max_tokens=2048, repetition_penalty=1.0),
    }
)


def decoding_preset(name: str) -> Decoding:
    """Return the preset `name`; change single values with `dataclasses.replace`.

    Raises:
        ConfigError: no such preset.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no decoding preset {name!r}; use one of {', '.join(PRESETS)}") from None


def without_unsupported(decoding: Decoding, unsupported: Collection[str]) -> tuple[Decoding, list[str]]:
    """Reset the fields that an engine does not support; also returns their names."""
    neutral = Decoding()
    lost = [name for name in sorted(unsupported) if getattr(decoding, name) != getattr(neutral, name)]
    return replace(decoding, **{name: getattr(neutral, name) for name in lost}), lost


def validate(decoding: Decoding) -> None:
    """Check that all values are valid for all generators.

    The limits are those of vLLM and of the OpenAI completions protocol.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """
    _check_range("temperature", decoding.temperature, 0.0, 2.0)
    _check_range("top_p", decoding.top_p, 0.0, 1.0, above=True)
    _check_range("presence_penalty", decoding.presence_penalty, -2.0, 2.0)
    _check_range("frequency_penalty", decoding.frequency_penalty, -2.0, 2.0)
    _check_range("repetition_penalty", decoding.repetition_penalty, 0.0, math.inf, above=True)
    _check_range("output_repetition_penalty", decoding.output_repetition_penalty, 0.0, math.inf, above=True)
    if decoding.repetition_penalty != 1 and decoding.output_repetition_penalty != 1:
        raise ConfigError(
            "decoding: repetition_penalty and output_repetition_penalty together "
            "would penalise the output twice; set one of them to 1"
        )
    _check_integer("max_tokens", decoding.max_tokens, 1)
    _check_integer("n", decoding.n, 1)
    _check_integer("top_k", decoding.top_k, 0)
    _check_range("min_p", decoding.min_p, 0.0, 1.0)
    _check_integer("min_tokens", decoding.min_tokens, 0)
    if decoding.min_tokens > decoding.max_tokens:
        raise ConfigError(f"decoding: min_tokens is {decoding.min_tokens}, above max_tokens ({decoding.max_tokens})")
    for token in decoding.stop_token_ids:
        _check_integer("stop_token_ids", token, 0)
    for token, bias in decoding.logit_bias:
        _check_integer("logit_bias", token, 0)
        _check_range("logit_bias", bias, -100.0, 100.0)
    if decoding.seed is not None:
        _check_integer("seed", decoding.seed, 0)
    stop: object = decoding.stop
    if not isinstance(stop, tuple | list) or not all(isinstance(text, str) and text for text in stop):
        raise ConfigError(f"decoding: stop must be a sequence of non-empty strings, not {stop!r}")
    if wrong := next((text for text in decoding.stop if valid_text(text) != text), None):
        raise ConfigError(f"decoding: the stop string {wrong!r} is not valid Unicode")


def _check_range(field: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (low <= number <= high and math.isfinite(number)) or (above and number == low):
        limits = f"above {low:g}" if above else f"at least {low:g}"
        limits += f" and at most {high:g}" if math.isfinite(high) else ""
        raise ConfigError(f"decoding: {field} must be a number {limits}, not {value!r}")


def _check_integer(field: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"decoding: {field} must be a whole number of at least {low}, not {value!r}")
