"""The output-only penalty: against transformers' own processor on output tokens, in whatever batch vLLM makes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.generation import OpenAIGenerator, TransformersGenerator, VllmGenerator
from ragalign.generation._sampling import sampler
from ragalign.types import Decoding, Prompt

pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")

PromptMaker = Callable[..., Prompt]
VOCABULARY = 24
PENALISED = Decoding(max_tokens=32, output_repetition_penalty=1.5)


def reference(logits: Any, output: list[int], penalty: float) -> Any:
    """What transformers makes of one row when it sees nothing but the output."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    if not output:
        return logits
    return RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([output]), logits[None].clone())[0]


def params(penalty: float) -> Any:
    from vllm import SamplingParams

    return SamplingParams(extra_args=None if penalty == 1 else {"output_repetition_penalty": penalty})


@given(st.integers(0, 2**32 - 1))
def test_rows_that_come_go_and_move_keep_their_own_output(seed: int) -> None:
    """A persistent batch as vLLM keeps one: the last row fills a hole, and rows are swapped."""
    import torch
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from ragalign.generation._output_penalty import OutputRepetitionPenalty

    draw = random.Random(seed)
    processor = OutputRepetitionPenalty(None, torch.device("cpu"), False)
    batch: list[tuple[float, list[int]]] = []
    for _ in range(draw.randint(1, 12)):
        removed = sorted(draw.sample(range(len(batch)), draw.randint(0, len(batch))), reverse=True)
        came = [(draw.choice([1.0, 0.7, 1.3, 2.0]), draw_output(draw)) for _ in range(draw.randint(0, 3))]
        holes = sorted(removed)
        added, moved = [], []
        rows = dict(enumerate(batch))
        for row in removed:
            del rows[row]
        for request in came:
            row = holes.pop(0) if holes else max(rows, default=-1) + 1
            rows[row] = request
            added.append((row, params(request[0]), [1, 2, 3], request[1]))
        removed = [row for row in removed if row not in {each[0] for each in added}]
        while rows and (hole := next((n for n in range(max(rows)) if n not in rows), None)) is not None:
            last = max(rows)
            moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
            rows[hole] = rows.pop(last)
        if len(rows) > 1 and draw.random() < 0.5:
            one, other = draw.sample(sorted(rows), 2)
            moved.append((one, other, MoveDirectionality.SWAP))
            rows[one], rows[other] = rows[other], rows[one]
        batch = [rows[row] for row in sorted(rows)]
        changes = bool(removed or added or moved)
        processor.update_state(BatchUpdate(len(batch), removed, added, moved) if changes else None)
        for _ in range(draw.randint(1, 3)):
            logits = torch.randn(
                (len(batch), VOCABULARY), generator=torch.Generator().manual_seed(draw.randrange(2**31))
            )
            expected = [reference(row, out, penalty) for row, (penalty, out) in zip(logits, batch, strict=True)]
            result = processor.apply(logits.clone())
            assert all(torch.equal(row, wanted) for row, wanted in zip(result, expected, strict=True))
            for _, output in batch:
                output.append(draw.randrange(VOCABULARY))


def draw_output(draw: random.Random) -> list[int]:
    """Mostly none; a request that was preempted comes back with what it has."""
    return [draw.randrange(VOCABULARY) for _ in range(draw.choice([0, 0, 1, 100]))]


def test_tokens_that_are_not_known_yet_are_read_later() -> None:
    import torch
    from vllm.v1.sample.logits_processor import BatchUpdate

    from ragalign.generation._output_penalty import OutputRepetitionPenalty

    processor = OutputRepetitionPenalty(None, torch.device("cpu"), False)
    output = [3, -1]
    processor.update_state(BatchUpdate(1, [], [(0, params(2.0), [], output)], []))
    ones = torch.ones((1, 5))
    assert processor.apply(ones.clone()).tolist() == [[1, 1, 1, 0.5, 1]]
    output[1] = 0
    assert processor.apply(ones.clone()).tolist() == [[0.5, 1, 1, 0.5, 1]]


@given(st.integers(0, 2**32 - 1))
def test_slots_of_the_newer_runner_give_the_same(seed: int) -> None:
    """No GPU here: its state and context are made by hand, on the CPU, in vLLM's own types."""
    import torch

    interface = pytest.importorskip("vllm.v1.worker.gpu.sample.logits_processor")
    from ragalign.generation._output_penalty import OutputRepetitionPenalty

    draw = random.Random(seed)
    n_slots, length = 6, 40
    history = torch.randint(VOCABULARY, (n_slots, length), generator=torch.Generator().manual_seed(seed))
    prompts = np.array([draw.randint(1, 20) for _ in range(n_slots)], dtype=np.int32)
    state = interface.LogitsProcRequestState(
        device=torch.device("cpu"),
        max_num_reqs=n_slots,
        vocab_size=VOCABULARY,
        all_token_ids=SimpleNamespace(gpu=history.int()),
        prompt_len=SimpleNamespace(np=prompts, gpu=torch.from_numpy(prompts)),
        prefill_len=None,
        total_len=(total := SimpleNamespace(gpu=None)),
    )
    processor = OutputRepetitionPenalty(None, state)
    for _ in range(4):  # slots are used again and again
        penalties = [draw.choice([1.0, 0.7, 1.3, 2.0]) for _ in range(n_slots)]
        lengths = np.array([draw.randint(prompt, length) for prompt in prompts], dtype=np.int32)
        total.gpu = torch.from_numpy(lengths)
        asked = [processor.add_request(slot, params(penalty)) for slot, penalty in enumerate(penalties)]
        assert asked == [penalty != 1 for penalty in penalties]
        processor.apply_staged_writes()
        slots = draw.sample(range(n_slots), draw.randint(1, n_slots))
        index = torch.tensor(slots, dtype=torch.int32)
        ctx = interface.LogitsContext(
            expanded_idx_mapping=index,
            idx_mapping=index,
            idx_mapping_np=np.array(slots),
            expanded_local_pos=torch.zeros_like(index),
            input_ids=history[slots, lengths[slots] - 1],
            pos=torch.from_numpy(lengths[slots] - 1),
            seq_lens_upper_bound_np=lengths[slots],
        )
        logits = torch.randn((len(slots), VOCABULARY), generator=torch.Generator().manual_seed(seed))
        result = processor.apply(logits.clone(), ctx)
        for slot, row, before in zip(slots, result, logits, strict=True):
            output = history[slot, prompts[slot] : lengths[slot]].tolist()
            assert torch.equal(row, reference(before, output, penalties[slot]))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.7, 1.3, 2.0]))
def test_transformers_penalises_the_output_alone(seed: int, penalty: float) -> None:
    import torch

    noise = torch.Generator().manual_seed(seed)
    ids, mask = torch.randint(VOCABULARY, (3, 14), generator=noise), torch.ones((3, 6), dtype=torch.long)
    mask[0, :4] = 0
    logits = torch.randn((3, VOCABULARY), generator=noise)
    result = sampler(Decoding(output_repetition_penalty=penalty), mask, [None] * 3)(ids, logits.clone())
    expected = [reference(row, output.tolist(), penalty) for row, output in zip(logits, ids[:, 6:], strict=True)]
    assert all(torch.equal(row, wanted) for row, wanted in zip(result, expected, strict=True))


def test_requests_with_and_without_it_share_the_engine(
    vllm_engine: VllmGenerator, transformers_engine: TransformersGenerator, make_prompt: PromptMaker
) -> None:
    questions = ["How do I boil an egg?", "Name three rivers.", "Hi", "A list is mutable and"]
    prompts = [make_prompt(question) for question in questions]
    plain = replace(PENALISED, output_repetition_penalty=1.0)
    kinds = [plain, PENALISED, replace(PENALISED, output_repetition_penalty=3.0, max_tokens=17)]
    alone = [[one.text for one in transformers_engine.generate(prompts, kind)] for kind in kinds]
    assert len({tuple(texts) for texts in alone}) == 3
    # All three run in one batch, begun in turns, while rows come and go.
    running = [vllm_engine.stream(prompt, kind) for prompt in prompts for kind in kinds]
    texts = ["" for _ in running]
    open_ = set(range(len(running)))
    while open_:
        for number in sorted(open_):
            delta = next(running[number])
            texts[number] += delta.text
            if delta.finish_reason is not None:
                open_.discard(number)
    assert texts == [alone[kind][prompt] for prompt in range(len(prompts)) for kind in range(len(kinds))]
    assert [one.text for one in vllm_engine.generate(prompts, plain)] == alone[0]


def test_endpoints_say_that_they_have_none(make_prompt: PromptMaker) -> None:
    with pytest.raises(
        ConfigError, match=r"^output_repetition_penalty: not supported by endpoints; use presence_penalty"
    ):
        OpenAIGenerator("model", "http://localhost:1/v1").generate([make_prompt("Hi")], PENALISED)


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), "1.1", True])
def test_vllm_refuses_what_is_no_penalty(value: object) -> None:
    from ragalign.generation._output_penalty import OutputRepetitionPenalty

    with pytest.raises(ValueError, match="must be a finite number above 0"):
        OutputRepetitionPenalty.validate_params(SimpleNamespace(extra_args={"output_repetition_penalty": value}))
