"""Settings of the service: limits, keys, allowed hosts and origins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ragalign.errors import ConfigError
from ragalign.serving.hosts import HostCheck

KEYS_VARIABLE = "RAGALIGN_API_KEYS"
ADMIN_KEY_VARIABLE = "RAGALIGN_ADMIN_KEY"
UPSTREAM_KEY_VARIABLE = "RAGALIGN_UPSTREAM_KEY"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request, a client and the whole service.

    Attributes:
        max_body_bytes: maximum size of a request's body.
        max_messages: maximum number of messages in a conversation.
        max_prompt_tokens: maximum tokens of a packed prompt; None for what the model's context allows.
        max_new_tokens: maximum of `max_tokens`.
        max_n: maximum number of answers per request.
        max_running: maximum number of concurrent requests.
        max_waiting: maximum number of queued requests; further ones get 429.
        requests_per_minute: maximum per API key, or per client address without keys; None for no limit.
        timeout_s: seconds after which a request is cancelled (504), waiting included.
        body_timeout_s: seconds within which a request's body must arrive.
        max_url_bytes: maximum size of path and query together.
        max_headers: maximum number of header fields.
        max_header_bytes: maximum size of all header fields together.
        head_timeout_s: seconds within which a request's head must arrive.
        write_timeout_s: seconds after which a client that reads nothing of its answer is cut off.
        max_connections: maximum number of open connections.
        max_conversations: conversations whose demonstrations are remembered; the least recently used go first.
    """

    max_body_bytes: int = 1_000_000
    max_messages: int = 256
    max_prompt_tokens: int | None = None
    max_new_tokens: int = 4096
    max_n: int = 8
    max_running: int = 64
    max_waiting: int = 256
    requests_per_minute: int | None = None
    timeout_s: float = 600.0
    body_timeout_s: float = 30.0
    max_url_bytes: int = 8_192
    max_headers: int = 100
    max_header_bytes: int = 32_768
    head_timeout_s: float = 10.0
    write_timeout_s: float = 60.0
    max_connections: int = 1_000
    max_conversations: int = 10_000

    def __post_init__(self) -> None:
        for name in (
            *("max_body_bytes", "max_messages", "max_new_tokens", "max_n", "max_running", "max_connections"),
            *("max_url_bytes", "max_headers", "max_header_bytes"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"serving: {name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_waiting", "max_conversations"):
            if getattr(self, name) < 0:
                raise ConfigError(f"serving: {name} must be at least 0, not {getattr(self, name)}")
        for name in ("max_prompt_tokens", "requests_per_minute"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"serving: {name} must be at least 1, not {getattr(self, name)}")
        for name in ("timeout_s", "body_timeout_s", "head_timeout_s", "write_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"serving: {name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Settings of the service.

    Attributes:
        limits: see `Limits`.
        api_keys: the accepted keys; without keys, all clients are accepted. With keys, everything except the page,
            ``/health`` and ``/ready`` needs one.
        open_metrics, open_schema: whether ``/metrics`` and ``/openapi.json`` need no key.
        allowed_hosts: see `ragalign.serving.hosts`.
        admin_key: the key for ``/admin``; without one, only requests from this machine are accepted.
        cors_origins: origins of web pages that can use the service; empty disables CORS.
        log_prompts: whether to log conversations and answers.
        topic_threshold: a conversation keeps its demonstrations while the cosine similarity between the newest
            user turn and the one they were retrieved for is at least this (see `ragalign.serving.conversations`).
    """

    limits: Limits = field(default_factory=Limits)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    open_metrics: bool = False
    open_schema: bool = False
    allowed_hosts: tuple[str, ...] = ()
    admin_key: str | None = field(default=None, repr=False)
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False
    topic_threshold: float = 0.15

    def __post_init__(self) -> None:
        HostCheck(self.allowed_hosts, has_keys=bool(self.api_keys))


def read_api_keys(file: Path | None = None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Keys from RAGALIGN_API_KEYS (separated by commas or white space) and a file (one a line, ``#`` comments).

    Raises:
        ConfigError: the file cannot be read or holds no key; a service that was meant to be closed must not be open.
    """
    keys = environment.get(KEYS_VARIABLE, "").replace(",", " ").split()
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"API keys {file}: {error}") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"API keys {file}: the file has no key")
        keys += found
    if any(not key.isascii() for key in keys):
        raise ConfigError("API keys: only ASCII characters can be sent in a header")
    return tuple(dict.fromkeys(keys))


def read_admin_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The key for ``/admin`` from RAGALIGN_ADMIN_KEY."""
    return environment.get(ADMIN_KEY_VARIABLE) or None


def read_upstream_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The key for completion servers from RAGALIGN_UPSTREAM_KEY.

    Raises:
        ConfigError: it cannot be sent in a header.
    """
    key = environment.get(UPSTREAM_KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{UPSTREAM_KEY_VARIABLE}: only printable ASCII characters can be sent in a header")
    return key or None
