"""A packed prompt for people and for scripts."""

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
    "too_long": "longer than one demonstration may be",
    "budget": "did not fit into the token budget",
    "context": "did not fit into the model's context",
    "stopped": "came after the prompt was full",
    "planned": "gave way to one that other prompts share",
}


# Control characters as the pictures that Unicode has for them: a text must not steer the terminal.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421, **dict.fromkeys((*range(0x80, 0xA0), 0x2028, 0x2029), 0xFFFD)}


def visible(text: str) -> str:
    """`text` with control characters as pictures."""
    return text.translate(_PICTURES)


def prompt_record(query_id: str, prompt: Prompt, context_length: int | None) -> dict[str, Any]:
    """What `ragalign pack --json` prints of one prompt; `context_length` is None where it is not known."""
    return {
        "id": query_id,
        "demonstrations": [
            {"id": one.id, "source_id": one.source_id, "score": one.score, "n_tokens": one.n_tokens}
            for one in prompt.demonstrations
        ],
        "n_tokens": prompt.n_tokens,
        "text": prompt.text,
        "dropped": [
            {
                "id": one.id,
                "source_id": one.source_id,
                "reason": one.reason,
                "score": one.score,
                "n_tokens": one.n_tokens,
            }
            for one in prompt.dropped
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
    """The prompt's text with a gutter that tells which part each line belongs to."""
    labels = [_label(one.source_id or one.id, one.n_tokens, one.score) for one in prompt.demonstrations]
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
    """The demonstrations in prompt order."""
    rows = [
        (number, one.source_id or one.id, "constant" if one.score is None else f"{one.score:.3f}", f"{one.n_tokens:,}")
        for number, one in enumerate(prompt.demonstrations, start=1)
    ]
    console.print_table([("", "right"), ("demonstration", "left"), ("score", "right"), ("tokens", "right")], rows)


def show_budget(prompt: Prompt, context_length: int | None = None) -> None:
    """Where the tokens went."""
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
    """The candidates that are not in the prompt, each with its reason."""
    if prompt.dropped:
        dropped = [(one.source_id or one.id, f"{one.n_tokens:,}", _REASONS[one.reason]) for one in prompt.dropped]
        console.print_table([("dropped", "left"), ("tokens", "right"), ("because it", "left")], dropped)


def count_dropped(prompt: Prompt) -> str:
    """How many candidates are not in the prompt, by reason, on one line."""
    counts = Counter(one.reason for one in prompt.dropped)
    return ", ".join(f"{count} {_REASONS[reason]}" for reason, count in counts.items())


def _terminal_lines(text: str, out: Console, indent: int) -> Iterator[Text]:
    """The lines of `text` as they can be shown behind `indent` cells; broken on terminals only."""
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
