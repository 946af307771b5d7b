"""Who is asked: a model at an OpenAI-compatible endpoint, and the key that opens it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ragalign.errors import ConfigError

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


def check_names(judges: Sequence[Judge]) -> None:
    """Refuse judges that verdicts could not tell apart.

    Raises:
        ConfigError: there is none, or two have the same name.
    """
    if not judges:
        raise ConfigError("no judge is named")
    names = [judge.name for judge in judges]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two judges are called {name!r}: verdicts and cached replies could not be told apart")
