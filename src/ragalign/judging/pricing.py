"""Prices of judges: a table that users can extend, and token estimates before a request is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ragalign._parsing import parse_toml
from ragalign._settings import from_flat_table
from ragalign.errors import ConfigError
from ragalign.judging.requests import JudgeRequest, JudgeUsage

# English has about four bytes per token, most other scripts three or fewer; three overestimates the cost.
_BYTES_PER_TOKEN = 3
# Tokens that chat formats add to each message (OpenAI's cookbook counts 3 to 4).
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(self, usage: JudgeUsage) -> float:
        """The cost of some tokens in US dollars."""
        return (usage.n_prompt_tokens * self.input + usage.n_output_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model name. The cost of a model without an entry is unknown, not 0."""

    prices: Mapping[str, Price]

    @classmethod
    def load(cls, path: Path | None = None) -> PriceTable:
        """Load the packaged table, updated with the entries of a user's file.

        The file is TOML: ``[models."NAME"]`` with ``input`` and ``output`` in US dollars per million tokens.

        Raises:
            ConfigError: the file cannot be read, or an entry is invalid.
        """
        shipped = files("ragalign") / "data" / "prices.toml"
        prices = _parse(shipped.read_text("utf-8"), "the packaged price table")
        if path is not None:
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise ConfigError(f"price table {path} cannot be read: {reason}") from None
            prices |= _parse(text, f"price table {path}")
        return cls(prices)

    def price(self, model: str) -> Price | None:
        """The price of a model, by its exact name; None if unknown."""
        return self.prices.get(model)

    def cost(self, model: str, usage: JudgeUsage | None) -> float | None:
        """The cost in US dollars; None if the price or the usage is unknown."""
        price = self.price(model)
        return None if price is None or usage is None else price.cost(usage)


@dataclass(frozen=True, slots=True)
class Quote:
    """The maximum cost of a request in US dollars; 0 if the price is unknown."""

    price: Price | None
    at_most: float

    @classmethod
    def of_request(cls, price: Price | None, usage: JudgeUsage) -> Quote:
        """Create a quote from the request's maximum tokens."""
        return cls(price, 0.0 if price is None else price.cost(usage))

    def of(self, usage: JudgeUsage | None) -> float:
        """The actual cost; the maximum if the endpoint does not report usage."""
        return self.at_most if self.price is None or usage is None else self.price.cost(usage)


def guess_usage(request: JudgeRequest) -> JudgeUsage:
    """Estimate a request's maximum tokens: its UTF-8 bytes divided by three, plus the output limit."""
    n_bytes = sum(len(turn.content.encode("utf-8", "surrogatepass")) for turn in request.messages)
    n_prompt = math.ceil(n_bytes / _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(request.messages)
    return JudgeUsage(n_prompt, request.parameters.max_tokens)


def _parse(text: str, where: str) -> dict[str, Price]:
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}") from None
    models = table.get("models")
    if not isinstance(models, dict) or set(table) != {"models"}:
        raise ConfigError(f'{where} must consist of tables [models."NAME"]')
    return {name: _price(entry, f"{where}, model {name!r}") for name, entry in models.items()}


def _price(entry: Any, where: str) -> Price:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: needs input and output, in US dollars per million tokens")
    price = from_flat_table(Price, entry, where)
    for name, value in (("input", price.input), ("output", price.output)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{where}: {name} must be at least 0 and finite, not {value!r}")
    return price
