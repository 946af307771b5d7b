"""Judges: models at OpenAI-compatible endpoints with their API keys, and reward models."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from ragalign._urls import SERVER_URL, is_server_url
from ragalign.errors import ConfigError
from ragalign.judging.base import Protocol

OPENAI_URL = "https://api.openai.com/v1"
# Keys are printable ASCII; other characters cannot be sent, and the HTTP library's error would quote the key.
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge at an OpenAI-compatible endpoint.

    Attributes:
        model: the model's name at the endpoint and in verdicts.
        base_url: the URL before ``/chat/completions``, such as ``http://localhost:8000/v1``.
        key_variable: the environment variable with the API key. The key itself is not stored.

    Raises:
        ConfigError: the URL is invalid, or has a password or query, which would end up in logs.
    """

    model: str
    base_url: str = OPENAI_URL
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("a judge needs a model name, such as gpt-4.1 or my-model@http://localhost:8000/v1")
        if not is_server_url(self.base_url):
            raise ConfigError(f"judge {self.model!r}: its URL must be {SERVER_URL}")
        url = urlsplit(self.base_url)
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise ConfigError(
                f"judge {self.model!r}: its URL must not have a user, password, query or fragment; "
                f"put the API key into the environment variable {self.key_variable}"
            )
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    @classmethod
    def parse(cls, text: str, *, key_variable: str = "OPENAI_API_KEY") -> Judge:
        """Parse ``MODEL`` or ``MODEL@BASE_URL``; the default URL is ``OPENAI_BASE_URL`` or else OpenAI's.

        Raises:
            ConfigError: the model's name is missing, or the URL is invalid.
        """
        model, at, rest = text.partition("@http")
        base_url = f"http{rest}" if at else os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        return cls(model, base_url, key_variable)

    @property
    def name(self) -> str:
        """The judge's name in verdicts, files and the cache."""
        return self.model

    @property
    def url(self) -> str:
        """The URL for requests."""
        return f"{self.base_url}/chat/completions"

    def key(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The API key; None if the variable is unset, for servers that need no key.

        Raises:
            ConfigError: the key for OpenAI's endpoint is missing, or a key has characters that a header cannot have.
        """
        key = environment.get(self.key_variable, "").strip()
        if not key:
            if self.base_url == OPENAI_URL:
                raise ConfigError(f"judge {self.model!r}: set the environment variable {self.key_variable}")
            return None
        if not _KEY.fullmatch(key):
            raise ConfigError(f"the environment variable {self.key_variable} has spaces or non-ASCII characters")
        return key


REWARD_PREFIX = "reward:"


@dataclass(frozen=True, slots=True)
class RewardJudge:
    """A reward model in transformers, used as a judge.

    Attributes:
        model: the model's folder or hub id.
        device: the device to run on, such as ``cuda``; by default a GPU if there is one.

    Raises:
        ConfigError: the folder does not exist, or the name is empty.
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
        """The judge's name in verdicts, files and the cache."""
        return f"{REWARD_PREFIX}{self.model}"


AnyJudge: TypeAlias = Judge | RewardJudge


def parse_judge(text: str, *, key_variable: str = "OPENAI_API_KEY") -> AnyJudge:
    """Parse ``MODEL``, ``MODEL@BASE_URL`` or ``reward:MODEL``.

    Raises:
        ConfigError: the model's name is missing, or the URL is invalid.
    """
    if text.startswith(REWARD_PREFIX):
        return RewardJudge(text.removeprefix(REWARD_PREFIX))
    return Judge.parse(text, key_variable=key_variable)


def check_judges(protocol: Protocol, judges: Sequence[AnyJudge]) -> None:
    """Reject judges with the same name, and judges that a protocol cannot ask.

    Raises:
        ConfigError: there is no judge, two have the same name, or a judge does not suit the protocol.
    """
    for judge in judges:
        if isinstance(judge, RewardJudge) != protocol.asks_reward_models:
            raise ConfigError(
                f"the protocol {protocol.name} cannot ask {judge.name}: the protocols reward and reward-pairwise take "
                "reward models, all others take chat models"
            )
    if not judges:
        raise ConfigError("no judge is given")
    names = [judge.name for judge in judges]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two judges are called {name!r}: their verdicts and cached replies could not be told apart"
            )
