"""Packed prompts as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ragalign_cli import console

if TYPE_CHECKING:
    from rich.console import Console

    from ragalign.types import Prompt

_REASONS = {
    "too_long": "longer than a demonstration is allowed to be",
    "budget": "did not fit into the token budget",
    "context": "did not fit into the model's context",
    "stopped": "came after the prompt was full",
    "planned": "was replaced by a demonstration that other prompts share",
}


# Show control characters as Unicode's control pictures, so that a text cannot control the terminal.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421, **dict.fromkeys((*range(0x80, 0xA0), 0x2028, 0x2029), 0xFFFD)}


def visible(text: str) -> str:
    """`text` with control characters as pictures."""
    return text.translate(_PICTURES)


def prompt_record(query_id: str, prompt: Prompt, context_length: int | None) -> dict[str, Any]:
    """A prompt as `ragalign pack --json` prints it; `context_length` is None if unknown."""
    return {
        "id": query_id,
        "demonstrations": [
            {"id": used.id, "source_id": used.source_id, "score": used.score, "n_tokens": used.n_tokens}
            for used in prompt.demonstrations
        ],
        "n_tokens": prompt.n_tokens,
        "text": prompt.text,
        "dropped": [
            {
                "id": candidate.id,
                "source_id": candidate.source_id,
                "reason": candidate.reason,
                "score": candidate.score,
                "n_tokens": candidate.n_tokens,
            }
            for candidate in prompt.dropped
        ],
        "n_special_tokens": prompt.n_special_tokens,
        "n_preamble_tokens": prompt.n_preamble_tokens,
        "n_demonstration_tokens": prompt.n_demonstration_tokens,
        "n_query_tokens": prompt.n_query_tokens,
        "max_tokens": prompt.max_tokens,
        "context_length": context_length,
        "stop": list(prompt.stop),
    }


def show_prompt(prompt: Prompt) -> None:
    """Print the prompt's text with a gutter that names the part of each line."""
    labels = [_label(used.source_id or used.id, used.n_tokens, used.score) for used in prompt.demonstrations]
    labels.append(f"query  {prompt.n_query_tokens:,} tokens")
    if len(prompt.pieces) > len(labels):
        labels.insert(0, f"preamble  {prompt.n_preamble_tokens:,} tokens")
    width = max(map(len, labels))
    out = console.stdout()
    for number, (label, piece) in enumerate(zip(labels, prompt.pieces, strict=True)):
        style = "cyan" if number % 2 else "green"
        for line_number, line in enumerate(_terminal_lines(piece, out, width + len(" \u2502 "))):
            gutter = f"{label if line_number == 0 else '':<{width}} \u2502 "
            out.print(Text.assemble((gutter, style), line))
        out.print(Text(f"{'':<{width}} \u2502", style))


def show_demonstrations(prompt: Prompt) -> None:
    """Print the demonstrations in prompt order."""
    rows = [
        (
            number,
            used.source_id or used.id,
            "constant" if used.score is None else f"{used.score:.3f}",
            f"{used.n_tokens:,}",
        )
        for number, used in enumerate(prompt.demonstrations, start=1)
    ]
    console.print_table([("", "right"), ("demonstration", "left"), ("score", "right"), ("tokens", "right")], rows)


def show_budget(prompt: Prompt, context_length: int | None = None) -> None:
    """Print the tokens of each part of the prompt."""
    rows = [
        ("preamble", f"{prompt.n_preamble_tokens:,}", ""),
        (
            f"{len(prompt.demonstrations)} demonstrations",
            f"{prompt.n_demonstration_tokens:,}",
            _share(prompt.n_demonstration_tokens, prompt.max_tokens, "in the budget"),
        ),
        ("query", f"{prompt.n_query_tokens:,}", ""),
        ("special tokens", f"{prompt.n_special_tokens:,}", ""),
        ("all", f"{len(prompt.ids):,}", _share(len(prompt.ids), context_length, "in the context")),
    ]
    console.print_table([("part", "left"), ("tokens", "right"), ("", "left")], rows)


def show_dropped(prompt: Prompt) -> None:
    """Print the candidates that are not in the prompt, with reasons."""
    if prompt.dropped:
        dropped = [
            (candidate.source_id or candidate.id, f"{candidate.n_tokens:,}", _REASONS[candidate.reason])
            for candidate in prompt.dropped
        ]
        console.print_table([("dropped", "left"), ("tokens", "right"), ("because it", "left")], dropped)


def count_dropped(prompt: Prompt) -> str:
    """The number of candidates that are not in the prompt, by reason, on one line."""
    counts = Counter(candidate.reason for candidate in prompt.dropped)
    return ", ".join(f"{count} {_REASONS[reason]}" for reason, count in counts.items())


def _terminal_lines(text: str, out: Console, indent: int) -> Iterator[Text]:
    """The lines of `text` for display after `indent` cells; wrapped on terminals only."""
    for line in text.rstrip("\n").replace("\r\n", "\n").split("\n"):
        shown = Text(line.translate(_PICTURES), tab_size=8)
        if out.soft_wrap or not line.strip():
            yield shown
        else:
            yield from shown.wrap(out, max(20, out.width - indent))


def _label(name: str, n_tokens: int, score: float | None) -> str:
    similarity = "constant" if score is None else f"{score:.3f}"
    return f"{name}  {n_tokens:,} tokens  {similarity}"


def _share(part: int, whole: int | None, what: str) -> str:
    return f"{part / whole:.0%} of {whole:,} {what}" if whole else ""
