"""What judging costs: a price table that users can extend, and token counts guessed before anything is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ragalign._parsing import parse_toml
from ragalign.errors import ConfigError
from ragalign.judging.base import JudgeRequest, JudgeUsage

# English has about four bytes per token, most other scripts three or fewer; three errs on the expensive side.
_BYTES_PER_TOKEN = 3
# What chat formats add around each message (OpenAI's cookbook counts 3 to 4).
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(self, usage: JudgeUsage) -> float:
        """US dollars for some tokens."""
        return (usage.n_prompt_tokens * self.input + usage.n_output_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model name. A model that is not in it has no known cost, which is not a cost of 0."""

    prices: Mapping[str, Price]

    @classmethod
    def load(cls, path: Path | None = None) -> PriceTable:
        """The shipped table, with the entries of a user's file added or replaced.

        The file is TOML: ``[models."NAME"]`` with ``input`` and ``output`` in US dollars per million tokens.

        Raises:
            ConfigError: the file cannot be read, or an entry is malformed.
        """
        shipped = files("ragalign") / "data" / "prices.toml"
        prices = _parse(shipped.read_text("utf-8"), "the shipped price table")
        if path is not None:
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise ConfigError(f"price table {path} cannot be read: {reason}") from None
            prices |= _parse(text, f"price table {path}")
        return cls(prices)

    def price(self, model: str) -> Price | None:
        """The price of a model, by its exact name; None where it is not known."""
        return self.prices.get(model)

    def cost(self, model: str, usage: JudgeUsage | None) -> float | None:
        """US dollars; None where the price or the usage is not known."""
        price = self.price(model)
        return None if price is None or usage is None else price.cost(usage)


@dataclass(frozen=True, slots=True)
class Quote:
    """What one request may cost, in US dollars; 0 where the price is not known."""

    price: Price | None
    at_most: float

    @classmethod
    def of_request(cls, price: Price | None, usage: JudgeUsage) -> Quote:
        """From the tokens that the request takes at most."""
        return cls(price, 0.0 if price is None else price.cost(usage))

    def of(self, usage: JudgeUsage | None) -> float:
        """What it did cost; the most that it may if the endpoint does not say what it used."""
        return self.at_most if self.price is None or usage is None else self.price.cost(usage)


def guess_usage(request: JudgeRequest) -> JudgeUsage:
    """Tokens that a request takes at most, roughly: its UTF-8 bytes over three, and all the output it may have."""
    n_bytes = sum(len(turn.content.encode("utf-8", "surrogatepass")) for turn in request.messages)
    n_prompt = math.ceil(n_bytes / _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(request.messages)
    return JudgeUsage(n_prompt, request.parameters.max_tokens)


def _parse(text: str, where: str) -> dict[str, Price]:
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{where} is no TOML: {error}") from None
    models = table.get("models")
    if not isinstance(models, dict) or set(table) != {"models"}:
        raise ConfigError(f'{where} must consist of tables [models."NAME"]')
    return {name: _price(entry, f"{where}, model {name!r}") for name, entry in models.items()}


def _price(entry: Any, where: str) -> Price:
    if not isinstance(entry, dict) or set(entry) != {"input", "output"}:
        raise ConfigError(f"{where}: needs input and output, in US dollars per million tokens, and nothing else")
    for name, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{where}: {name} must be a number of at least 0, not {value!r}")
    return Price(float(entry["input"]), float(entry["output"]))
