"""Whether an answer follows verifiable instructions: IFEval (Zhou et al., 2311.07911) and IFBench (2507.02833).

The checkers are those of the package ``if-verifiable``; strict and loose, and what counts as unscored, are decided
here. Upstream draws what a prompt leaves open at random: IFEval's letter frequency takes any letter for ``#`` and
``!`` (two of its prompts), in the strict and in the loose pass separately. Here these draws are seeded; other recorded
runs may have drawn other letters. An argument that a prompt lacks altogether leaves its instruction unscored.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ragalign._optional import require
from ragalign.errors import ConfigError, DataError

BENCHMARKS = ("ifeval", "ifbench")

_SEED = 0
_LANGUAGE_SEED = 0
# Packages that include NLTK's data, and the folder inside them: (package, folder).
_CARRIERS = (("llama_index", "core/_static/nltk_cache"),)


@dataclass(frozen=True, slots=True)
class InstructionPrompt:
    """A prompt with instructions that a program can check.

    Attributes:
        id: upstream's ``key``; the text where there is none.
        text: the prompt.
        instructions: the ids of the instructions, such as ``punctuation:no_comma``.
        arguments: what each instruction asks for, such as ``{"num_words": 300}``.
    """

    id: str
    text: str
    instructions: tuple[str, ...]
    arguments: tuple[Mapping[str, Any], ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> InstructionPrompt:
        """From a row of upstream's prompt files: ``key``, ``prompt``, ``instruction_id_list``, ``kwargs``.

        Raises:
            DataError: a field is missing or of the wrong kind; the message says which.
        """
        text, names, arguments = row.get("prompt"), row.get("instruction_id_list"), row.get("kwargs")
        if not isinstance(text, str):
            raise DataError("no text 'prompt'")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise DataError("no list of names 'instruction_id_list'")
        if not isinstance(arguments, list) or not all(
            argument is None or isinstance(argument, Mapping) for argument in arguments
        ):
            raise DataError("no list of objects 'kwargs'")
        if len(arguments) != len(names):
            raise DataError(f"{len(names)} instructions, but 'kwargs' of {len(arguments)}")
        # The hub's files list every possible argument, null if unused.
        given = tuple(
            {key: value for key, value in (argument or {}).items() if value is not None} for argument in arguments
        )
        return cls(str(row.get("key", row.get("id", text))), text, tuple(names), given)


@dataclass(frozen=True, slots=True)
class Followed:
    """Whether an answer follows one instruction.

    Attributes:
        instruction: its id.
        strict: as the answer is; None where the checker cannot run.
        loose: in any of the eight variants (see `loose_variants`); None where none passes and a checker cannot run.
        reason: why a checker cannot run; empty where it can.
    """

    instruction: str
    strict: bool | None
    loose: bool | None
    reason: str = ""

    @property
    def is_scored(self) -> bool:
        """Whether both verdicts are known."""
        return self.strict is not None and self.loose is not None


def loose_variants(answer: str) -> list[str]:
    """The answer; without its first line, its last, and both; and each of these without ``*``."""
    lines = answer.split("\n")
    shorter = ["\n".join(kept).strip() for kept in (lines[1:], lines[:-1], lines[1:-1])]
    variants = [answer, *shorter]
    return variants + [variant.replace("*", "") for variant in variants]


class InstructionChecker:
    """Checks answers against the instructions of a benchmark.

    Args:
        benchmark: ``ifeval`` or ``ifbench``.

    Raises:
        ConfigError: there is no such benchmark.
        MissingDependencyError: the package ``if-verifiable`` is not installed.
    """

    def __init__(self, benchmark: str) -> None:
        if benchmark not in BENCHMARKS:
            raise ConfigError(f"no benchmark {benchmark!r}: choose one of {', '.join(BENCHMARKS)}")
        require("if_verifiable", "checking instructions")
        with _resources():
            self._checkers = _registry(benchmark)

    def check(self, prompt: InstructionPrompt, answer: str) -> list[Followed]:
        """One result per instruction of the prompt. An empty answer follows none."""
        with _resources():
            return [
                self._check(prompt, name, given, answer)
                for name, given in zip(prompt.instructions, prompt.arguments, strict=True)
            ]

    def _check(self, prompt: InstructionPrompt, name: str, given: Mapping[str, Any], answer: str) -> Followed:
        if name not in self._checkers:
            return Followed(name, None, None, "there is no checker of this name")
        if not answer.strip():
            return Followed(name, False, False)
        strict, reason = self._passes(prompt, name, given, [answer], "strict")
        loose, other = self._passes(prompt, name, given, loose_variants(answer), "loose")
        return Followed(name, strict, loose, reason or ("" if loose is not None else other))

    def _passes(
        self, prompt: InstructionPrompt, name: str, given: Mapping[str, Any], variants: Sequence[str], mode: str
    ) -> tuple[bool | None, str]:
        """Whether any variant passes, or None with the reason if the checker fails."""
        random.seed(f"{_SEED} {mode} {name} {prompt.text}")
        try:
            checker = self._checkers[name](name)
            missing = [key for key in checker.get_instruction_args_keys() or () if key not in (*given, "prompt")]
            if missing:
                return None, f"the prompt gives no {', '.join(missing)}"
            checker.build_description(**given)
            if "prompt" in (checker.get_instruction_args() or ()):
                checker.build_description(prompt=prompt.text)
        except Exception as error:  # a checker can raise anything
            return None, _reason(error)
        reason = ""
        for variant in variants:
            try:
                if variant.strip() and checker.check_following(variant):
                    return True, ""
            except Exception as error:
                reason = _reason(error)
        return (None if reason else False), reason


def _registry(benchmark: str) -> Mapping[str, Any]:
    import nltk

    # IFBench's module downloads data on import; missing data is reported where it is needed.
    download, nltk.download = nltk.download, lambda *_, **__: False
    try:
        if benchmark == "ifeval":
            from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
        else:
            from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    finally:
        nltk.download = download
    found: Mapping[str, Any] = INSTRUCTION_DICT
    return found


@contextmanager
def _resources() -> Iterator[None]:
    """Make NLTK's data available and seed language detection; global state is restored afterwards."""
    import langdetect
    import nltk

    state, seed, paths = random.getstate(), langdetect.DetectorFactory.seed, list(nltk.data.path)
    langdetect.DetectorFactory.seed = _LANGUAGE_SEED
    nltk.data.path += [str(folder) for folder in _carried_data()]
    try:
        yield
    finally:
        nltk.data.path[:] = paths
        langdetect.DetectorFactory.seed = seed
        random.setstate(state)


def _carried_data() -> Iterator[Path]:
    """Folders of NLTK data inside installed packages; nothing of those packages is imported."""
    for package, folder in _CARRIERS:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / folder).is_dir():
                yield Path(place) / folder


def _reason(error: Exception) -> str:
    missing = re.search(r"Resource \S*?(\w+)\S* not found", re.sub(r"\x1b\[\d*m", "", str(error)))
    if isinstance(error, LookupError) and missing:
        return (
            f"the checker needs NLTK's {missing[1]}: run python -m nltk.downloader {missing[1]} (punkt_tab and "
            "stopwords also come with pip install --no-deps llama-index-core)"
        )
    text = " ".join(str(error).split())[:200]
    return (
        f"the checker failed: {type(error).__name__}: {text}" if text else f"the checker failed: {type(error).__name__}"
    )
