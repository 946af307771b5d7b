"""IFEval and IFBench: programs, not judges, check whether answers follow their prompts' instructions.

Figures are in percent: prompts with all instructions followed, and instructions followed, both strict and loose (see
`ragalign.measures.instructions`). Intervals of the latter resample prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ragalign.errors import ConfigError, DataError
from ragalign.judging.base import Decision, Figures, Judgement, Observations, Protocol, Verdict
from ragalign.judging.files import read_rows
from ragalign.judging.protocols.grouping import figures, group, line, mean
from ragalign.judging.requests import Item, Json, JudgeReply, JudgeRequest
from ragalign.measures.instructions import Followed, InstructionChecker, InstructionPrompt

_MODES = ("strict", "loose")


class InstructionProtocol(Protocol):
    """The base of both benchmarks.

    Args:
        strict: has no effect, since there are no replies to parse.
        prompts: the upstream file of prompts; only `aggregate` works without it.
    """

    is_pairwise = False
    file_format = "jsonl"
    benchmark: ClassVar[str]

    def __init__(self, *, strict: bool = False, prompts: str | Path | None = None) -> None:
        super().__init__(strict=strict)
        self._file = prompts
        self._prompts = {} if prompts is None else read_prompts(prompts)
        self._checker = None if prompts is None else InstructionChecker(self.benchmark)

    def build(self, item: Item) -> list[JudgeRequest]:
        """Not supported.

        Raises:
            ConfigError: always; instructions are checked by programs.
        """
        raise ConfigError(f"{self.name} asks no judge: use --metric {self.name}, or `ragalign judge aggregate`")

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """Not supported, see `build`."""
        raise ConfigError(f"{self.name} asks no judge")

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """No rows, since there is no judge."""
        return []

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """One verdict per answer, computed from the answer; recorded verdicts are ignored."""
        if self._checker is None:
            raise ConfigError(
                f"the protocol {self.name} needs the prompts with their instructions: give --prompts FILE"
            )
        text = _first_text(row, ("prompt", "instruction"))
        answer = _first_text(row, ("response", "output"))
        if text is None or answer is None:
            raise DataError(f"no string field {'prompt' if text is None else 'response'!r}")
        prompt = self._prompts.get(text.strip())
        if prompt is None:
            raise DataError(f"{self._file} has no such prompt: {text[:60]!r}")
        followed = self._checker.check(prompt, answer)
        return [verdict_of(self.name, prompt.id, Path(source).stem, followed, f"{position}", source=source)]

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """The four figures, one `Figures` per file and model."""
        return [self._figures(members) for members in group(verdicts, line)]

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        observed = instruction_observations(verdicts)
        notes = []
        answered = {verdict.item_id for verdict in verdicts}
        if n_missing := sum(prompt.id not in answered for prompt in self._prompts.values()):
            notes.append(f"{n_missing} of {len(self._prompts)} prompts have no answer")
        values = {name: mean(observations) for name, observations in observed.items()}
        return figures(self.name, verdicts, values, observed, notes)


class IfEval(InstructionProtocol):
    """Instruction-following evaluation, 541 prompts (google-research/instruction_following_eval)."""

    name = "ifeval"
    benchmark = "ifeval"


class IfBench(InstructionProtocol):
    """IFBench, the harder successor of IFEval, 300 prompts (allenai/IFBench)."""

    name = "ifbench"
    benchmark = "ifbench"


def read_prompts(path: str | Path) -> dict[str, InstructionPrompt]:
    """Read the upstream file of prompts, keyed by text without surrounding white space.

    Raises:
        DataError: the file cannot be read, or a row is not a prompt with instructions.
    """
    found: dict[str, InstructionPrompt] = {}
    for row in read_rows(path):
        if row.value is None:
            raise DataError(f"{row.where}: {row.problem}")
        try:
            prompt = InstructionPrompt.from_row(row.value)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
        found.setdefault(prompt.text.strip(), prompt)  # recorded runs differ in blanks at the ends
    return found


def verdict_of(
    protocol: str, item_id: str, model: str, followed: Sequence[Followed], name: str, *, source: str | None = None
) -> Verdict:
    """The verdict on an answer: scored if all instructions could be checked; the metadata has the result of each."""
    unknown = next((result for result in followed if not result.is_scored), None)
    scores = {} if unknown else {f"prompt_{mode}": float(all(_values(followed, mode))) for mode in _MODES}
    if not unknown:
        scores |= {f"instruction_{mode}": sum(_values(followed, mode)) / len(followed) for mode in _MODES}
    metadata: dict[str, Any] = {
        "instructions": [result.instruction for result in followed],
        **{mode: [getattr(result, mode) for result in followed] for mode in _MODES},
    }
    return Verdict(
        id=f"{item_id}/{name}",
        item_id=item_id,
        protocol=protocol,
        judge="",
        model=model,
        scores=scores,
        reason=f"{unknown.instruction}: {unknown.reason}" if unknown else None,
        metadata=metadata | ({"source": source} if source is not None else {}),
    )


def instruction_observations(verdicts: Iterable[Verdict]) -> dict[str, Observations]:
    """The observations of the four figures, in percent; all instructions that could be checked count."""
    verdicts = list(verdicts)
    found = {}
    for mode in _MODES:
        scored = [verdict for verdict in verdicts if verdict.is_scored]
        found[f"prompt_{mode}"] = Observations(
            tuple(verdict.item_id for verdict in scored),
            tuple(100 * verdict.scores[f"prompt_{mode}"] for verdict in scored),
            len(verdicts) - len(scored),
            is_share=True,
        )
    for mode in _MODES:
        pairs = [(verdict.item_id, known) for verdict in verdicts for known in verdict.metadata.get(mode, ())]
        values = Counter(known is None for _, known in pairs)
        found[f"instruction_{mode}"] = Observations(
            tuple(prompt for prompt, known in pairs if known is not None),
            tuple(100.0 * known for _, known in pairs if known is not None),
            values[True],
            is_share=True,
        )
    return found


def _values(followed: Sequence[Followed], mode: str) -> list[bool]:
    return [bool(getattr(result, mode)) for result in followed]


def _first_text(row: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((row[key] for key in keys if isinstance(row.get(key), str)), None)
