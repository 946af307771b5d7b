"""Explanations on request: the demonstrations of a prompt, their scores and the budget."""

from __future__ import annotations

from typing import Any

from ragalign.aligner import Aligner
from ragalign.serving.preparing import BLIND, Prepared
from ragalign.serving.service import RequestTimings, ResolvedChat
from ragalign.types import Demonstration


def demonstrations_of(aligner: Aligner) -> str:
    """The origin of demonstrations: ``none``, ``fixed``, ``random``, ``retrieved``, or two joined by " + "."""
    name = None if aligner.retriever is None else aligner.retriever.name
    kinds = ["fixed"] if aligner.packer.constants else []
    if name is not None:
        kinds.append(name if name in BLIND else "retrieved")
    return " + ".join(dict.fromkeys(kinds)) or "none"


def explain_prompt(chat: ResolvedChat, prepared: Prepared, context_length: int | None) -> dict[str, Any]:
    """Describe a prompt: every piece in order with its text and tokens, and dropped candidates."""
    prompt, aligner = prepared.prompt, chat.aligner
    pieces: list[dict[str, Any]] = []
    texts = list(prompt.pieces)
    if len(texts) > len(prompt.demonstrations) + 1:
        pieces.append({"kind": "preamble", "n_tokens": prompt.n_preamble_tokens, "text": texts.pop(0)})
    reused = {used.start for used in prompt.reused}
    for used, text in zip(prompt.demonstrations, texts, strict=False):
        about = {"id": used.id, "source_id": used.source_id, "score": used.score, "n_tokens": used.n_tokens}
        about |= {"reused": used.start in reused}
        pieces.append({"kind": "demonstration", **about, **_texts(aligner, used.id), "text": text})
    pieces.append({"kind": "query", "n_tokens": prompt.n_query_tokens, "text": texts[-1]})
    return {
        "recipe": chat.recipe,
        "index_generation": chat.catalog.version,
        "demonstrations_kept": prepared.reused,
        "pieces": pieces,
        "dropped": [
            {
                "id": dropped.id,
                "source_id": dropped.source_id,
                "score": dropped.score,
                "n_tokens": dropped.n_tokens,
                "reason": dropped.reason,
                "instruction": _texts(aligner, dropped.id).get("instruction", ""),
            }
            for dropped in prompt.dropped
        ],
        "tokens": {
            "prompt": len(prompt.ids),
            "special": prompt.n_special_tokens,
            "preamble": prompt.n_preamble_tokens,
            "demonstrations": prompt.n_demonstration_tokens,
            "query": prompt.n_query_tokens,
            "budget": prompt.max_tokens,
            "context": context_length,
            "reserved": chat.decoding.max_tokens,
        },
        "stop": list(prompt.stop),
    }


def explain_timings(timings: RequestTimings, prepared: Prepared, n_cached: int | None, n_reused: int) -> dict[str, Any]:
    """The times of all steps in seconds, and the cached and reused parts of the prompt."""
    seconds = {
        "queue": timings.queue_s,
        "retrieval": prepared.retrieval_s,
        "packing": prepared.packing_s,
        "first_token": timings.first_token_s,
        "total": timings.elapsed(),
    }
    rounded = {name: None if value is None else round(value, 5) for name, value in seconds.items()}
    return {"seconds": rounded, "n_cached_tokens": n_cached, "n_reused_tokens": n_reused}


def _texts(aligner: Aligner, id_: str) -> dict[str, str]:
    found = _find(aligner, id_)
    return {} if found is None else {"instruction": found.instruction, "response": found.response}


def _find(aligner: Aligner, id_: str) -> Demonstration | None:
    for constant in aligner.packer.constants:
        if constant.demonstration.id == id_:
            return constant.demonstration
    try:
        return aligner.packer.pool.get(id_)
    except KeyError:
        return None
