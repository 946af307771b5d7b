"""Judge prompts in the file formats of the upstream tools, which the packaged prompts use too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ragalign._optional import require
from ragalign._parsing import parse_json
from ragalign.errors import ConfigError
from ragalign.judging.protocols.filling import Syntax, check_placeholders, fill
from ragalign.types import Role, Turn

_CHATML = re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n(.*?)<\|im_end\|>", re.DOTALL)
_JUST_EVAL_CONSTANTS = {"MULTI_SCORE_TEMPLATE": "score_multi", "SAFETY_SCORE_TEMPLATE": "score_safety"}
_SYSTEM_FOR_TEXT = "You are a careful and impartial judge."


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A judge prompt: messages with placeholders.

    Attributes:
        name: the prompt's name in records.
        turns: the messages; empty ones are not sent.
        syntax: how placeholders are marked.
        output_format: the output format that the judge is asked for, if the file states it (FastChat).
    """

    name: str
    turns: tuple[Turn, ...]
    syntax: Syntax
    output_format: str = ""

    def render(self, values: Mapping[str, str]) -> tuple[Turn, ...]:
        """The messages with all placeholders filled."""
        return tuple(Turn(turn.role, fill(turn.content, values, self.syntax)) for turn in self.turns if turn.content)

    def check(self, required: Iterable[str], allowed: Iterable[str], where: str) -> None:
        """Check the prompt's placeholders.

        Raises:
            ConfigError: a placeholder is missing or unknown.
        """
        text = "\n".join(turn.content for turn in self.turns)
        check_placeholders(text, required, allowed, self.syntax, f"the judge prompt {self.name!r} in {where}")


def prompt_text(path: str | Path | None, own: str) -> tuple[str, str]:
    """The text of a prompt file, or of the packaged file `own`, and its name for messages.

    Raises:
        ConfigError: the file cannot be read.
    """
    if path is None:
        return (files("ragalign.judging.protocols") / "prompts" / own).read_text(encoding="utf-8"), own
    try:
        return Path(path).read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"cannot read the prompt file {path}: {reason}") from None


def parse_chatml(text: str, where: str) -> JudgePrompt:
    """Parse AlpacaEval's prompt: ``<|im_start|>role`` blocks ended by ``<|im_end|>``, with ``{name}`` placeholders.

    Raises:
        ConfigError: there is no such block, or a role is unknown.
    """
    turns = tuple(Turn(_role(role, where), content.strip()) for role, content in _CHATML.findall(text))
    if not turns:
        raise ConfigError(f"{where} has no <|im_start|>role ... <|im_end|> block: it is not an AlpacaEval prompt")
    return JudgePrompt(Path(where).stem, turns, "braces")


def parse_fastchat(text: str, where: str) -> dict[str, JudgePrompt]:
    """Parse FastChat's ``judge_prompts.jsonl``, one prompt per line, into prompts by name.

    Raises:
        ConfigError: a line is not a JSON object or lacks a field.
    """
    prompts = {}
    for number, row in _json_lines(text, where):
        name, system, template = (
            _field(row, key, where, number) for key in ("name", "system_prompt", "prompt_template")
        )
        turns = (Turn("system", system), Turn("user", template))
        prompts[name] = JudgePrompt(name, turns, "format", str(row.get("output_format", "")))
    return prompts


def parse_reviewer(text: str, where: str) -> JudgePrompt:
    """Parse FastChat's original reviewer prompt (``prompt.jsonl``), which ICA's judge uses; only the first line counts.

    ``defaults`` has values for placeholders other than the question and the answers.

    Raises:
        ConfigError: the line is not a JSON object or lacks a field.
    """
    number, row = next(iter(_json_lines(text, where)), (0, None))
    if row is None:
        raise ConfigError(f"{where} is empty: it must have a JSON object with system_prompt and prompt_template")
    system, template = (_field(row, key, where, number) for key in ("system_prompt", "prompt_template"))
    # Double the defaults' braces to keep them as text when the prompt is filled.
    defaults = {
        str(name): str(value).replace("{", "{{").replace("}", "}}")
        for name, value in (row.get("defaults") or {}).items()
    }
    template = re.sub(r"\{(\w+)\}", lambda match: defaults.get(match[1], match[0]), template)
    return JudgePrompt("reviewer", (Turn("system", system), Turn("user", template)), "format")


def parse_just_eval(text: str, where: str) -> dict[str, JudgePrompt]:
    """Parse just-eval's templates: its Python module of constants, or a plain text with ``${...}`` placeholders.

    Returns:
        Prompts by mode, ``score_multi`` and ``score_safety``. A plain text is the safety prompt if it asks for a
        ``"safety"`` score and not for ``"helpfulness"``.

    Raises:
        ConfigError: a Python file has no such constant.
    """
    if not where.endswith(".py"):
        mode = "score_safety" if '"safety"' in text and '"helpfulness"' not in text else "score_multi"
        return {mode: _just_eval(mode, text)}
    found = {}
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise ConfigError(f"{where} is not a valid Python file: line {error.lineno}: {error.msg}") from None
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for target in node.targets:
                constant = getattr(target, "id", "")
                if constant in _JUST_EVAL_CONSTANTS:
                    mode = _JUST_EVAL_CONSTANTS[constant]
                    found[mode] = _just_eval(mode, node.value.value)
    if not found:
        raise ConfigError(f"{where} defines neither MULTI_SCORE_TEMPLATE nor SAFETY_SCORE_TEMPLATE")
    return found


def parse_urial(text: str, where: str) -> JudgePrompt:
    """Parse URIAL's pairwise template: a user message with ``{$name}`` placeholders."""
    return JudgePrompt(Path(where).stem, (Turn("system", _SYSTEM_FOR_TEXT), Turn("user", text)), "urial")


def parse_arena_hard(text: str, where: str, default_system: str = "") -> JudgePrompt:
    """Parse Arena-Hard's YAML configuration: ``system_prompt`` and ``prompt_template`` (a string, or a list of one).

    Version 2 of the tool has its system prompts in code; `default_system` is used then.

    Raises:
        ConfigError: the file is not a YAML mapping with a single prompt template.
    """
    yaml = require("yaml", "reading an Arena-Hard configuration")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    template = config.get("prompt_template") if isinstance(config, dict) else None
    if isinstance(template, list) and len(template) == 1:
        template = template[0]
    if not isinstance(template, str):
        raise ConfigError(f"{where} must have one prompt_template, a string or a list of one string")
    system = config.get("system_prompt") or default_system
    return JudgePrompt("arena-hard", (Turn("system", str(system)), Turn("user", template)), "format")


def _just_eval(mode: str, text: str) -> JudgePrompt:
    return JudgePrompt(mode, (Turn("system", _SYSTEM_FOR_TEXT), Turn("user", text)), "dollar")


def _role(role: str, where: str) -> Role:
    known: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
    if role not in known:
        raise ConfigError(f"{where} has a block with the unknown role {role!r}: use system, user or assistant")
    return known[role]


def _json_lines(text: str, where: str) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ConfigError(f"{where} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{where} line {number} is not a JSON object")
        yield number, row


def _field(row: Mapping[str, Any], key: str, where: str, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"{where} line {number} has no string field {key!r}")
    return value
