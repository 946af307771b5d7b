"""The card of a trained encoder: what it was trained on, and what that was worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ragalign.retrieval.calibration import TextForm
from ragalign.utility.trained import Trained, TrainOptions

_SHOWN = ("model", "pool", "questions", "candidates", "max_reference_tokens", "seed")


def write_card(
    folder: Path,
    trained: Trained,
    encoder: str,
    settings: Mapping[str, Any],
    options: TrainOptions,
    text: TextForm,
) -> None:
    """Write ``README.md`` into an encoder's folder."""
    before, after = trained.before, trained.after
    name = encoder if not Path(encoder).is_dir() else Path(encoder).name
    shown = "\n".join(f"- {name}: `{_short(settings[name])}`" for name in _SHOWN if settings.get(name) is not None)
    flag = " --text both" if text == "both" else ""
    lines = f"""---
library_name: sentence-transformers
tags: [sentence-transformers, ragalign]
---

# An encoder that retrieves useful demonstrations

`{name}`, fine-tuned by ragalign {version("ragalign")} so that its similarity predicts how much likelier a demonstration
makes a good answer to a question. It reads {_FORMS[text]}.

```sh
ragalign index --pool POOL --encoder FOLDER{flag} --out INDEX
```

## Trained on

{trained.n_pairs:,} measured gains of {trained.n_questions:,} questions; {before.n:,} other questions were held out and
decided when to stop (after {trained.epochs:g} of {options.epochs} epochs). Measured with:

{shown or "- settings unknown"}

Options: {", ".join(f"`{key} = {value}`" for key, value in asdict(options).items())}.

## Held-out questions

Gains in nats per token of the answer; rank correlation is Spearman's, between similarity and gain.

| | first candidate | rank correlation |
|---|---:|---:|
| before | {before.chosen:+.4f} | {before.correlation:+.3f} |
| after | {after.chosen:+.4f} | {after.correlation:+.3f} |
| a random candidate | {before.mean:+.4f} | |
| the best candidate | {before.best:+.4f} | |
"""
    (folder / "README.md").write_text(lines, encoding="utf-8")


_FORMS: Mapping[str, str] = {
    "instruction": "the instruction of a demonstration",
    "both": "the instruction and the response of a demonstration",
}


def _short(value: object) -> str:
    """A setting, with local paths removed."""
    return Path(str(value)).name if str(value).startswith(("/", "~")) else str(value)[:80]
