"""`ragalign judge`: average recorded judgements, and measure how far judges agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragalign_cli import console

if TYPE_CHECKING:
    from ragalign.judging.agreement import Agreement
    from ragalign.judging.base import Figures
    from ragalign.judging.replay import Problem
    from ragalign.statistics import Estimate

_LISTED = 10

app = typer.Typer(
    help="Judge completions, average recorded judgements, measure agreement.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Judgement files of the upstream tool.")]
Protocol = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="ica, alpaca-eval-1, alpaca-eval-2, mt-bench, just-eval, urial-pairwise or arena-hard.",
        show_default=False,
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse replies that the upstream tool would guess at.")]
Json = Annotated[bool, typer.Option("--json", help="JSON Lines on stdout.")]


@app.command("aggregate")
def aggregate(
    files: Files,
    protocol: Protocol,
    strict: Strict = False,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="MT-Bench: the questions, for averages by category.", show_default=False),
    ] = None,
    length_control: Annotated[
        Literal["auto", "minimal", "off"] | None,
        typer.Option(
            help="AlpacaEval: minimal does without instruction difficulties, for any set of prompts; auto takes what "
            "the other options allow. Default: auto for alpaca-eval-2, off for alpaca-eval-1.",
            show_default=False,
        ),
    ] = None,
    instruction_difficulty: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Difficulties of AlpacaEval's instructions.", show_default=False)
    ] = None,
    glm_weights: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Published weights of the length control.", show_default=False),
    ] = None,
    df_gamed: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Regularising rows, to fit the length control.", show_default=False),
    ] = None,
    glm_c: Annotated[
        float | None,
        typer.Option(metavar="C", help="Fix the fit's C instead of cross-validating.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Average recorded judgements as the upstream tool does, one line per model.

    Scores are read again from the judge's recorded words (AlpacaEval averages the stored preferences, which are
    checked against the words). Rates are in percent. Intervals are at 95 percent: a bootstrap over prompts,
    for shares at the extremes Wilson's.

    On AlpacaEval's own 805 instructions `length_controlled_winrate` is the leaderboard's figure, which needs
    --instruction-difficulty with either --glm-weights or --df-gamed; without them `length_controlled_winrate_minimal`
    stands in its place, which does without difficulties and is not comparable. On any other set of prompts
    `length_controlled_winrate` is that minimal model; `glm_name` says which model a figure comes from.

    \b
    Examples:
      ragalign judge aggregate --protocol ica model_vs_baseline_autoeval.jsonl
      ragalign judge aggregate --protocol mt-bench gpt-4_single.jsonl --questions question.jsonl
      ragalign judge aggregate --protocol just-eval general.json safety.json --json
      ragalign judge aggregate --protocol alpaca-eval-2 annotations.json --length-control minimal
      ragalign judge aggregate --protocol alpaca-eval-2 annotations.json --glm-weights weights.csv
        --instruction-difficulty instruction_difficulty.csv
    """
    from ragalign.comparisons.intervals import intervals
    from ragalign.comparisons.recorded import aggregate_files
    from ragalign.judging.answers import read_categories
    from ragalign.judging.protocols.length_control_files import load_length_control

    given = (instruction_difficulty, glm_weights, df_gamed, glm_c)
    wanted = length_control is not None or any(option is not None for option in given)
    control = None
    if wanted or protocol == "alpaca-eval-2":
        control = load_length_control(
            length_control or "auto", weights=glm_weights, difficulty=instruction_difficulty, gamed=df_gamed, c=glm_c
        )
    recorded = aggregate_files(
        protocol,
        files,
        strict=strict,
        categories=read_categories(questions) if questions is not None else None,
        length_control=control,
    )
    tell_problems(recorded.problems)
    estimates = [intervals(figures) for figures in recorded.figures]
    if json:
        for figures, found in zip(recorded.figures, estimates, strict=True):
            console.print_json(figures_record(figures, found) | {"protocol": protocol})
    else:
        show_figures(recorded.figures, estimates)


@app.command("agreement")
def agreement(
    files: Files,
    protocol: Protocol,
    human: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Human labels as JSON Lines, JSON or CSV: `item_id` and `label` (win, tie, lose or a score), with "
            "`model`, `turn`, `sample`, `rating` and `rater` where they matter; or FastChat's `winner` rows.",
            show_default=False,
        ),
    ] = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Measure how far judges agree with each other and with people.

    Each judge is a rater; where one judge, or an unnamed one, scored the same in several files, each file is.
    Preferences count as win, tie or lose, scores by their distance. What only one rater scored does not count.

    \b
    Examples:
      ragalign judge agreement --protocol mt-bench gpt-4_single.jsonl llama-3_single.jsonl
      ragalign judge agreement --protocol alpaca-eval-2 annotations.json --human labels.csv --json
    """
    from ragalign.comparisons.agreement import agreement_of_files

    result = agreement_of_files(protocol, files, human=human, strict=strict)
    tell_problems(result.problems)
    if result.n_unmatched:
        console.warning(f"{result.n_unmatched} human labels fit no verdict and are left out")
    if json:
        for one in result.agreements:
            console.print_json({"protocol": protocol, "n_unscored": result.n_unscored, **one.as_dict()})
    else:
        show_agreements(result.agreements)


def figures_record(figures: Figures, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """The figures as JSON, with an interval for every mean."""
    return {**figures.as_dict(), "intervals": {name: one.to_dict() for name, one in estimates.items()}}


def show_figures(table: Sequence[Figures], estimates: Sequence[Mapping[str, Estimate]]) -> None:
    """One block per model: its figures, with the intervals of those that are means."""
    for figures, found in zip(table, estimates, strict=True):
        baseline = f" vs {figures.baseline}" if figures.baseline else ""
        console.heading(f"{figures.model}{baseline}")
        rows: list[tuple[str, str, str]] = [("n", str(figures.n), ""), ("n_unscored", str(figures.n_unscored), "")]
        for name, value in _flat(figures.values):
            estimate = found.get(name)
            interval = f"{estimate.low:.2f} to {estimate.high:.2f}" if estimate is not None else ""
            rows.append((name, _number(value), interval))
        console.print_table([("figure", "left"), ("value", "right"), ("95 % interval", "right")], rows)
        for reason, count in figures.reasons.items():
            console.note(f"{figures.model}: {count} unscored: {reason}")
        for note in figures.notes:
            console.note(f"{figures.model}: {note}")


def show_agreements(agreements: Sequence[Agreement]) -> None:
    """A table of agreements, one line per two raters."""
    columns = [("rating", "left"), ("raters", "left"), ("n", "right"), ("same, %", "right"), ("Cohen's kappa", "right")]
    rows: list[list[object]] = []
    for one in agreements:
        rows += [
            [one.rating, f"{pair.first} / {pair.second}", pair.n, _number(pair.observed), _number(pair.kappa)]
            for pair in one.pairs
        ]
    console.print_table(columns, rows)
    for one in agreements:
        alpha = "not defined" if one.alpha is None else f"{one.alpha:.3f}"
        console.note(f"{one.rating}: Krippendorff's alpha ({one.level}) {alpha} over {one.n_units} units")


def tell_problems(problems: Sequence[Problem]) -> None:
    """One line per unreadable row, up to a number, then how many more there are."""
    for problem in problems[:_LISTED]:
        console.warning(f"{problem.where}: {problem.reason}; counted as unscored")
    if len(problems) > _LISTED:
        console.warning(f"... and {len(problems) - _LISTED} more unreadable rows, counted as unscored")


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{part}", one) for part, one in value.items())
        else:
            yield name, value


def _number(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
