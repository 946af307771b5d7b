"""Who is asked: a model at an OpenAI-compatible endpoint, and the key that opens it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from ragalign.errors import ConfigError
from ragalign.judging.base import Protocol

OPENAI_URL = "https://api.openai.com/v1"
# Keys are printable ASCII; anything else could not be sent, and the HTTP library's complaint would quote it.
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that judges.

    Attributes:
        model: the model's name, as the endpoint knows it and as verdicts record it.
        base_url: where ``/chat/completions`` is, such as ``http://localhost:8000/v1``.
        key_variable: the environment variable that holds the API key. The key itself is kept nowhere.

    Raises:
        ConfigError: the URL is none, or holds a password or query, which would end up in logs.
    """

    model: str
    base_url: str = OPENAI_URL
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("a judge needs a model name, such as gpt-4.1 or my-model@http://localhost:8000/v1")
        try:
            url = urlsplit(self.base_url)
            is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            is_usable = False
        if not is_usable:
            raise ConfigError(f"judge {self.model!r}: its address must start with http:// or https:// and name a host")
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise ConfigError(
                f"judge {self.model!r}: its address must hold no user, password, query or fragment; "
                f"put the API key into the environment variable {self.key_variable}"
            )
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    @classmethod
    def parse(cls, text: str, *, key_variable: str = "OPENAI_API_KEY") -> Judge:
        """Read ``MODEL`` or ``MODEL@BASE_URL``; without an address ``OPENAI_BASE_URL`` or OpenAI's own is meant.

        Raises:
            ConfigError: there is no model, or the address is unusable.
        """
        model, at, rest = text.partition("@http")
        base_url = f"http{rest}" if at else os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        return cls(model, base_url, key_variable)

    @property
    def name(self) -> str:
        """What verdicts, files and the cache call this judge."""
        return self.model

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.base_url}/chat/completions"

    def key(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The API key; None where the variable is unset, which is fine for servers that ask for none.

        Raises:
            ConfigError: OpenAI's own endpoint without a key, or a key that no header can carry.
        """
        key = environment.get(self.key_variable, "").strip()
        if not key:
            if self.base_url == OPENAI_URL:
                raise ConfigError(f"judge {self.model!r}: set the environment variable {self.key_variable}")
            return None
        if not _KEY.fullmatch(key):
            raise ConfigError(f"the environment variable {self.key_variable} holds blanks or other odd characters")
        return key


REWARD_PREFIX = "reward:"


@dataclass(frozen=True, slots=True)
class RewardJudge:
    """A reward model in transformers that judges.

    Attributes:
        model: its folder or hub id.
        device: where it runs, such as ``cuda``; by default a GPU if there is one.

    Raises:
        ConfigError: there is no such folder, or no name.
    """

    model: str
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError(f"a reward model needs a folder or hub id: {REWARD_PREFIX}MODEL")
        is_folder = self.model.startswith(("/", "./", "../", "~"))
        if is_folder and not Path(self.model).expanduser().is_dir():
            raise ConfigError(f"there is no model folder {self.model}")

    @property
    def name(self) -> str:
        """What verdicts, files and the cache call this judge."""
        return f"{REWARD_PREFIX}{self.model}"


AnyJudge: TypeAlias = Judge | RewardJudge


def parse_judge(text: str, *, key_variable: str = "OPENAI_API_KEY") -> AnyJudge:
    """Read ``MODEL``, ``MODEL@BASE_URL`` or ``reward:MODEL``.

    Raises:
        ConfigError: there is no model, or the address is unusable.
    """
    if text.startswith(REWARD_PREFIX):
        return RewardJudge(text.removeprefix(REWARD_PREFIX))
    return Judge.parse(text, key_variable=key_variable)


def check_judges(protocol: Protocol, judges: Sequence[AnyJudge]) -> None:
    """Refuse judges that verdicts could not tell apart, or that a protocol cannot ask.

    Raises:
        ConfigError: there is none, two have the same name, or reward models and words do not go together.
    """
    for judge in judges:
        if isinstance(judge, RewardJudge) != protocol.asks_reward_models:
            raise ConfigError(
                f"{judge.name} and the protocol {protocol.name} do not go together: reward models are asked by the "
                "protocols reward and reward-pairwise, which ask nobody else"
            )
    if not judges:
        raise ConfigError("no judge is named")
    names = [judge.name for judge in judges]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two judges are called {name!r}: verdicts and cached replies could not be told apart")
