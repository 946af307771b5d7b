"""Generation with transformers: without prefix cache and scheduler, but wherever torch runs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign._bars import hidden_bars
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._scoring import token_logprobs
from ragalign.generation.ahead import Ahead
from ragalign.generation.base import BaseGenerator, SampledOutput, as_requests, one_line
from ragalign.generation.distributions import Distributions, from_tensor
from ragalign.generator import ClosableIterator
from ragalign.models import locate_model, locate_tokenizer
from ragalign.stopping import StopFilter, merge_stops
from ragalign.types import Decoding, Delta, Output, Prompt


class TransformersGenerator(BaseGenerator):
    """A causal language model in `transformers`, with the semantics of `VllmGenerator`.

    Prompts run in left-padded batches in the given order. Penalties, temperature, top-p and seeds are applied per
    request and never read from the model's generation config, so that an answer does not depend on its batch; with
    temperature 0 it equals vLLM's up to rounding.

    Args:
        model: a folder or Hub id.
        tokenizer: a folder or Hub id, if not the model's; it must be a "fast" one.
        device: such as "cpu" or "cuda:1"; a GPU by default, if there is one.
        dtype: type of weights and activations, such as "bfloat16"; "auto" follows the model.
        batch_size: number of requests per batch.

    Raises:
        ConfigError: the model folder does not exist, or the tokenizer is not a fast one.
        GenerationError: the model could not be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int = 8,
        context_length: int | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self._name = str(model)
        located = locate_model(model)
        at = located if tokenizer is None else locate_tokenizer(tokenizer)
        self._batch_size = batch_size
        try:
            loaded_tokenizer = AutoTokenizer.from_pretrained(at)
            with hidden_bars("transformers", on_terminals=False):
                loaded = AutoModelForCausalLM.from_pretrained(located, dtype=dtype)
            loaded = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        # transformers raises many kinds of errors for damaged files.
        except Exception as error:
            raise GenerationError(f"transformers could not load {self._name}: {one_line(error)}") from error
        if not loaded_tokenizer.is_fast:
            raise ConfigError(f"{self._name} has no fast tokenizer (tokenizer.json), which generating text needs")
        # transformers takes missing arguments of a call from here, such as a model's own temperature or top-k.
        loaded.generation_config = GenerationConfig()
        self._model: Any = loaded
        self._device = loaded.device
        self._tokenizer: Any = loaded_tokenizer
        limits = (context_length, getattr(loaded.config.get_text_config(), "max_position_embeddings", None))
        self._context_length = min((limit for limit in limits if limit is not None), default=None)

    @property
    def model(self) -> str:
        """The model's name or folder."""
        return self._name

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together, from the model's config."""
        return self._context_length

    @property
    def vocabulary_size(self) -> int | None:
        """Number of rows of the model's embedding; None once the generator is closed."""
        return int(self._model.config.get_text_config().vocab_size) if self._model is not None else None

    @property
    def shares_cpu(self) -> bool:
        """Whether the model is on the CPU."""
        return bool(self._device.type == "cpu")

    def close(self) -> None:
        """Release the model."""
        self._model = None

    def _samples(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[SampledOutput]:
        started = time.perf_counter()
        with closing(Ahead(as_requests(prompts, decoding.n))) as coming:
            while batch := coming.take(self._batch_size, wait=True):
                requests = [self._request(prompt, decoding, sample) for _, sample, prompt in batch]
                self._run(requests, decoding)
                for (index, sample, prompt), request in zip(batch, requests, strict=True):
                    yield SampledOutput(
                        index=index,
                        sample=sample,
                        prompt=prompt,
                        output=Output(
                            "".join(request.pieces),
                            request.finish_reason or "abort",
                            request.n_tokens,
                            tuple(request.written),
                        ),
                        n_cached_tokens=None,
                        latency_s=time.perf_counter() - started,
                    )

    def _deltas(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """Run `generate` in a thread that passes on pieces through a queue; None ends them."""
        pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        request = self._request(prompt, decoding, 0, on_text=pieces.put)

        def work() -> None:
            try:
                self._run([request], decoding)
                pieces.put(None)
            except Exception as error:
                pieces.put(error)

        worker = threading.Thread(target=work, name="ragalign-transformers-stream", daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield Delta(piece, request.n_tokens)
            yield Delta("", request.n_tokens, request.finish_reason or "abort")
        finally:
            request.finish_reason = request.finish_reason or "abort"
            worker.join()

    def _distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], top_k: int | None
    ) -> Iterator[tuple[int, Distributions]]:
        """Run one forward pass per batch, left-padded, so that the wanted positions are aligned."""
        import torch

        if self._model is None:
            raise GenerationError(f"the generator of {self._name} is closed")
        for begin in range(0, len(sequences), self._batch_size):
            batch = [list(ids) for ids in sequences[begin : begin + self._batch_size]]
            ids, mask = _left_padded(batch, self._model.device)
            wanted = [len(ids) - start for ids, start in zip(batch, starts[begin:], strict=False)]
            try:
                with torch.inference_mode():
                    logits = self._model(
                        ids,
                        attention_mask=mask,
                        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                        logits_to_keep=max(wanted) + 1,
                        use_cache=False,
                    ).logits
                    for row, sequence in enumerate(batch):
                        n = len(sequence) - starts[begin + row]
                        kept = logits[row, logits.shape[1] - n - 1 : -1].float().log_softmax(-1)
                        yield begin + row, from_tensor(kept, sequence[len(sequence) - n :], top_k)
            except (RuntimeError, ValueError, IndexError) as error:
                raise GenerationError(f"transformers failed with {self._name}: {one_line(error)}") from error

    def _token_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        import torch

        if self._model is None:
            raise GenerationError(f"the generator of {self._name} is closed")
        with closing(token_logprobs(self._model, sequences, starts, self._batch_size)) as found:
            while True:
                # Not around the yield: the mode would hold for the caller's work, too.
                try:
                    with torch.inference_mode():
                        result = next(found, None)
                except (RuntimeError, ValueError, IndexError) as error:
                    raise GenerationError(f"transformers failed with {self._name}: {one_line(error)}") from error
                if result is None:
                    return
                yield result

    def _request(
        self, prompt: Prompt, decoding: Decoding, sample: int, on_text: Callable[[str], None] | None = None
    ) -> _Request:
        from tokenizers.decoders import DecodeStream

        token_ids = prompt.token_ids
        room = decoding.max_tokens
        if self._context_length is not None:
            room = min(room, self._context_length - len(token_ids))
        return _Request(
            token_ids=token_ids,
            room=room,
            seed=None if decoding.seed is None else decoding.seed + sample,
            end_ids=self._end_ids(decoding),
            # Primed with the prompt, as in vLLM, so that the first piece keeps its leading space.
            decode=DecodeStream(ids=token_ids, skip_special_tokens=True),
            backend=self._tokenizer.backend_tokenizer,
            filter=StopFilter(merge_stops(prompt.stop, decoding.stop)),
            on_text=on_text,
        )

    def _end_ids(self, decoding: Decoding) -> frozenset[int]:
        """The tokens that end an answer."""
        eos_id = self._tokenizer.eos_token_id
        own = () if eos_id is None or decoding.ignore_eos else (eos_id,)
        return frozenset((*own, *decoding.stop_token_ids))

    def _run(self, requests: Sequence[_Request], decoding: Decoding) -> None:
        """Answer a batch; the answers are stored in the requests."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        from ragalign.generation._sampling import sampler, stopper

        if self._model is None:
            raise GenerationError(f"the generator of {self._name} is closed")
        ids, mask = _left_padded([request.token_ids for request in requests], self._model.device)
        config = GenerationConfig(
            do_sample=False,  # the sampler has already sampled: its token has the highest score
            max_new_tokens=max(request.room for request in requests),
            pad_token_id=self._tokenizer.eos_token_id or 0,
        )
        try:
            with torch.inference_mode():
                self._model.generate(
                    ids,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=LogitsProcessorList(
                        [sampler(decoding, mask, [request.seed for request in requests], self._end_ids(decoding))]
                    ),
                    stopping_criteria=StoppingCriteriaList(
                        [stopper([request.push for request in requests])],
                    ),
                )
        except (RuntimeError, ValueError, IndexError) as error:
            raise GenerationError(f"transformers failed with {self._name}: {one_line(error)}") from error
        for request in requests:
            request.finish()


def _left_padded(sequences: Sequence[list[int]], device: Any) -> tuple[Any, Any]:
    """Ids and attention mask, both int64 [n, longest]."""
    import torch

    width = max(map(len, sequences))
    ids = torch.zeros((len(sequences), width), dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence, device=device)
        mask[row, width - len(sequence) :] = 1
    return ids, mask


@dataclass
class _Request:
    """An answer that is being generated."""

    token_ids: list[int]
    room: int
    seed: int | None
    end_ids: frozenset[int]
    decode: Any
    backend: Any
    filter: StopFilter
    on_text: Callable[[str], None] | None
    pieces: list[str] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def n_tokens(self) -> int:
        """Number of tokens so far."""
        return len(self.written)

    def push(self, token_id: int) -> bool:
        """Take the next token; return whether the answer is finished."""
        if self.finish_reason is not None:
            return True
        self.written.append(token_id)
        if token_id in self.end_ids:
            self.finish_reason = "stop"
            return True
        self._emit(self.filter.push(self._text_of(token_id)))
        if self.filter.stopped:
            self.finish_reason = "stop"
        elif self.n_tokens >= self.room:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def finish(self) -> None:
        """End the answer: release the text held back for stop strings."""
        self._emit(self.filter.finish())

    def _text_of(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is incomplete."""
        from tokenizers.decoders import DecodeStream

        try:
            return self.decode.step(self.backend, token_id) or ""
        except Exception as error:
            if not str(error).startswith("Invalid prefix"):
                raise
            # Invalid UTF-8 can corrupt the decoder's state; it has no specific exception for that.
            self.decode = DecodeStream(skip_special_tokens=True)
            return self.decode.step(self.backend, token_id) or ""

    def _emit(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            if self.on_text is not None:
                self.on_text(text)
