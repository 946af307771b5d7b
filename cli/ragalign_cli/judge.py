"""`ragalign judge`: judge answers, average recorded judgements, and measure agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ragalign_cli import console
from ragalign_cli.figures import figures_record, nothing_scored, number_or_dash, show_figures, tell_problems
from ragalign_cli.help import Command, group
from ragalign_cli.judge_run import run

if TYPE_CHECKING:
    from ragalign.judging.agreement import Agreement

app = group("Judge answers, average recorded judgements, and measure agreement.")
app.command("run", cls=Command)(run)

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Judgement files of the upstream tool.")]
Protocol = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="ica, alpaca-eval-1, alpaca-eval-2, mt-bench, just-eval, urial-pairwise, arena-hard, ifeval or ifbench.",
        show_default=False,
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Leave replies unscored where the upstream tool would guess.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON Lines.")]


@app.command("aggregate", cls=Command)
def aggregate(
    files: Files,
    protocol: Protocol,
    strict: Strict = False,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="MT-Bench: the question file, for averages by category.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="IFEval, IFBench: the upstream file of prompts with their instructions.",
            show_default=False,
        ),
    ] = None,
    length_control: Annotated[
        Literal["auto", "minimal", "off"] | None,
        typer.Option(
            help="AlpacaEval: minimal needs no instruction difficulties and suits any prompts; auto uses the files "
            "given by the other options. Default: auto for alpaca-eval-2, off for alpaca-eval-1.",
            show_default=False,
        ),
    ] = None,
    instruction_difficulty: Annotated[
        Path | None, typer.Option(metavar="CSV", help="AlpacaEval's instruction difficulties.", show_default=False)
    ] = None,
    glm_weights: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Published weights of the length control.", show_default=False),
    ] = None,
    df_gamed: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="AlpacaEval's df_gamed.csv, which regularises the fit of the length control.",
            show_default=False,
        ),
    ] = None,
    glm_c: Annotated[
        float | None,
        typer.Option(metavar="C", help="Fix the fit's C instead of cross-validating it.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Average recorded judgements as the upstream tool does.

    Scores are parsed from the judge's recorded replies (AlpacaEval averages the stored preferences, which are checked
    against the replies). Rates are in percent, with 95 % intervals: a bootstrap over prompts or, for shares near 0
    and 100, Wilson's interval.

    On AlpacaEval's own 805 instructions, `length_controlled_winrate` is the leaderboard's figure, which needs
    --instruction-difficulty with either --glm-weights or --df-gamed; without them `length_controlled_winrate_minimal`
    replaces it; that model uses no difficulties and is not comparable. On any other set of prompts,
    `length_controlled_winrate` comes from the minimal model. `glm_name` names the model of a figure.

    \b
    Examples:
      ragalign judge aggregate --protocol ica model_vs_baseline_autoeval.jsonl
      ragalign judge aggregate --protocol mt-bench gpt-4_single.jsonl \\
          --queries question.jsonl
      ragalign judge aggregate --protocol just-eval general.json safety.json \\
          --json
      ragalign judge aggregate --protocol ifeval answers.jsonl \\
          --prompts ifeval_prompts.jsonl
      ragalign judge aggregate --protocol alpaca-eval-2 annotations.json \\
          --length-control minimal
      ragalign judge aggregate --protocol alpaca-eval-2 annotations.json \\
          --glm-weights weights.csv \\
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
        categories=read_categories(queries) if queries is not None else None,
        length_control=control,
        prompts=prompts,
    )
    tell_problems(recorded.problems)
    estimates = [intervals(figures) for figures in recorded.figures]
    if json:
        for figures, found in zip(recorded.figures, estimates, strict=True):
            console.print_json(figures_record(figures, found) | {"protocol": protocol})
    else:
        show_figures(recorded.figures, estimates)
    if not any(figures.n for figures in recorded.figures):
        reasons: Counter[str] = Counter()
        for figures in recorded.figures:
            reasons.update(figures.reasons)
        console.error(nothing_scored(reasons))
        raise typer.Exit(console.EXIT_FAILURE)


@app.command("agreement", cls=Command)
def agreement(
    files: Files,
    protocol: Protocol,
    human: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Human labels as JSON Lines, JSON or CSV: `item_id` and `label` (win, tie, lose or a score), and "
            "optionally `model`, `turn`, `sample`, `rating` and `rater`; or FastChat's `winner` rows.",
            show_default=False,
        ),
    ] = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Measure the agreement between judges, and with people.

    Each judge is a rater; if a judge (or unnamed judges) scored the same answers in several files, each file is one.
    Preferences are compared as win, tie or lose, scores by their distance. Answers with one rater do not count.

    \b
    Examples:
      ragalign judge agreement --protocol mt-bench gpt-4_single.jsonl \\
          llama-3_single.jsonl
      ragalign judge agreement --protocol alpaca-eval-2 annotations.json \\
          --human labels.csv --json
    """
    from ragalign.comparisons.agreement import agreement_of_files

    result = agreement_of_files(protocol, files, human=human, strict=strict)
    tell_problems(result.problems)
    if result.n_unmatched:
        console.warning(f"{result.n_unmatched} human labels match no verdict and are left out")
    if json:
        for found in result.agreements:
            console.print_json({"protocol": protocol, "n_unscored": result.n_unscored, **found.as_dict()})
    else:
        show_agreements(result.agreements)


def show_agreements(agreements: Sequence[Agreement]) -> None:
    """Print agreements, one row for each pair of raters."""
    columns = [("rating", "left"), ("raters", "left"), ("n", "right"), ("same, %", "right"), ("Cohen's kappa", "right")]
    rows: list[list[object]] = []
    for found in agreements:
        rows += [
            [
                found.rating,
                f"{pair.first} / {pair.second}",
                pair.n,
                number_or_dash(pair.observed),
                number_or_dash(pair.kappa),
            ]
            for pair in found.pairs
        ]
    console.print_table(columns, rows)
    for found in agreements:
        alpha = "not defined" if found.alpha is None else f"{found.alpha:.3f}"
        console.note(f"{found.rating}: Krippendorff's alpha ({found.level}) {alpha} over {found.n_units} units")
