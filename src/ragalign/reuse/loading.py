"""The workers' side: write kept keys and values into the engine's cache, and keep new ones."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ragalign.errors import ConfigError, DataError
from ragalign.reuse.eight_bit import packed
from ragalign.reuse.pieces import DamagedPieceError, Piece
from ragalign.reuse.recording import Capture, Recorder, slots_of
from ragalign.reuse.rotation import Mover, Rotation
from ragalign.reuse.store import Store
from ragalign.reuse.tiers import Tiers
from ragalign.reuse.writing import AllAtOnce, FewLayers

_log = logging.getLogger(__name__)
# Pieces that are written at the same time; hashing and writing leave Python's lock.
_WRITERS = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece and the positions [start, end) of a request that it fills; the prefix is not moved."""

    name: str
    start: int
    end: int
    moved: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """Tokens [first, end) of a request to load, from the segments that they are in, into the request's blocks."""

    request: str
    segments: tuple[Segment, ...]
    first: int
    end: int
    blocks: tuple[int, ...]


class Worker:
    """Loads and copies keys and values on one device.

    Args:
        store: what is kept.
        vllm_config: the engine's.
        rotations: how each layer turns its keys.
        memory, gpu_memory: bytes of host and GPU memory for the pieces used most recently.
        volatile: keep new pieces in host memory only, where they last as long as the engine.
    """

    def __init__(
        self,
        store: Store,
        vllm_config: Any,
        rotations: Sequence[Rotation | None],
        *,
        memory: int,
        gpu_memory: int,
        volatile: bool = False,
    ) -> None:
        self._store = store
        self._config = vllm_config
        self._rotations = tuple(rotations)
        self._budgets = (memory, gpu_memory)
        self._volatile = volatile
        self._layers: list[Any] = []
        self._updates: list[Callable[..., Any]] = []  # the engine's own, which record nothing
        self._groups: list[tuple[Mover | None, list[int]]] = []
        self._tiers: Tiers | None = None
        self._device: Any = None
        self._recorder: Recorder | None = None
        self._failed: set[int] = set()
        self._group: Any = None  # the workers that share the model's heads

    def register(self, names: Sequence[str]) -> None:
        """Find the layers of the engine's caches.

        Raises:
            ConfigError: the model has other layers than its configuration says, or of several sizes.
        """
        context = self._config.compilation_config.static_forward_context
        names = sorted(names, key=_layer_number)
        layers = [context[name] for name in names]
        shapes = {(layer.num_kv_heads, layer.head_size, layer.head_size_v) for layer in layers if _is_plain(layer)}
        if len(layers) != len(self._rotations) or len(shapes) != 1 or not all(map(_is_plain, layers)):
            raise ConfigError(
                "keys and values cannot be reused: the model has layers that share, compress or do without them"
            )
        [(n_heads, n_features, n_features_of_values)] = shapes
        if n_features != n_features_of_values:
            raise ConfigError("keys and values cannot be reused: keys and values have different sizes")
        self._layers, self._device = layers, layers[0].kv_cache.device
        n_positions = self._config.model_config.max_model_len
        by_rotation: dict[Rotation | None, list[int]] = defaultdict(list)
        for number, rotation in enumerate(self._rotations):
            by_rotation[rotation].append(number)
        self._groups = [
            (None if rotation is None else Mover(rotation, n_positions, self._device), numbers)
            for rotation, numbers in by_rotation.items()
        ]
        parallel = self._config.parallel_config
        heads = None
        if parallel.tensor_parallel_size > 1:
            from vllm.distributed.parallel_state import get_tp_group

            self._group = get_tp_group()
            rank = self._group.rank_in_group
            heads = slice(rank * n_heads, (rank + 1) * n_heads)
        memory, gpu_memory = self._budgets
        self._tiers = Tiers(self._store, memory=memory, gpu_memory=gpu_memory, device=self._device, heads=heads)
        self._recorder = Recorder(len(layers), self._config.cache_config.block_size, self._device)
        self._updates = [layer.impl.do_kv_cache_update for layer in layers]
        for number, layer in enumerate(layers):
            layer.impl.do_kv_cache_update = _recorded(self._updates[number], self._recorder, number)

    def expect(self, captures: Sequence[Capture]) -> None:
        """Set the tokens to keep from the next step."""
        assert self._recorder is not None
        self._recorder.expect(captures)

    def load(self, loads: Sequence[Load]) -> None:
        """Load what a step needs."""
        import torch

        with torch.inference_mode():
            for load in loads:
                self._load(load)

    def finish(self) -> None:
        """Keep the pieces whose last token has been computed."""
        assert self._recorder is not None
        if not self._recorder.is_recording:
            return
        complete = self._recorder.finish()
        if self._volatile:
            for name, kv in complete:
                self._keep_in_memory(name, kv)
            return
        if self._group is not None:  # all workers complete the same pieces in the same order
            complete = [(name, gathered(kv, self._group)) for name, kv in complete]
            if not self._group.is_first_rank:
                return
        with ThreadPoolExecutor(_WRITERS) as writers:
            list(writers.map(lambda found: self._write(*found), complete))

    def forget(self, requests: Collection[str]) -> None:
        """Discard what was recorded of requests that have ended."""
        if self._recorder is not None:
            self._recorder.forget(requests)

    def resize(self, *, memory: int, gpu_memory: int) -> None:
        """Change the memory budgets, in bytes."""
        assert self._tiers is not None
        self._tiers.resize(memory=memory, gpu_memory=gpu_memory)

    def take_failed_blocks(self) -> set[int]:
        """Blocks that could not be filled since the last call."""
        failed, self._failed = self._failed, set()
        return failed

    def counts(self) -> dict[str, int]:
        """Counts since the engine started."""
        return {} if self._tiers is None else {**self._tiers.counts, "bytes_in_memory": self._tiers.n_bytes}

    def _load(self, load: Load) -> None:
        assert self._tiers is not None
        size = self._config.cache_config.block_size
        slots = slots_of(load.blocks, load.first, load.end, size, self._device)
        write = FewLayers if self._device.type == "cpu" else AllAtOnce
        writer = write(self._layers, self._updates, self._config.model_config.dtype, slots)
        turners = self._turners(load)
        for segment in load.segments:
            first, after = max(segment.start, load.first), min(segment.end, load.end)
            try:
                piece = self._tiers.get(segment.name)
                if piece.shape != self._shape(segment):
                    raise DamagedPieceError(f"{self._store.path(segment.name)}: of another shape than this model's")
            except DataError as error:
                _log.warning("%s; its tokens and those after it are computed", error)
                if isinstance(error, DamagedPieceError):  # others can be readable again later
                    self._store.set_aside(segment.name)
                # The engine computes whole blocks, so their present content does not matter.
                self._failed.update(load.blocks[first // size : -(-load.end // size)])
                break
            place = slice(first - load.first, after - load.first)
            turns = [
                (partial(turner, place) if turner is not None and self._moves(segment) else None, numbers)
                for turner, numbers in turners
            ]
            writer.add(piece, slice(first - segment.start, after - segment.start), turns)
            self._tiers.done(segment.name, piece)
        writer.finish()
        self._tiers.counts["tokens_loaded"] += writer.n_tokens
        self._tiers.counts["bytes_loaded"] += writer.n_bytes

    def _moves(self, segment: Segment) -> bool:
        """Whether a segment's keys have other positions than in its piece."""
        return segment.moved and segment.start != len(self._store.manifest.prefix_ids)

    def _turners(self, load: Load) -> list[tuple[Callable[[slice, Any], Any] | None, list[int]]]:
        """For each rotation, the function that turns keys of some of a load's tokens, and its layers.

        The angles of all tokens are computed at once: there are many segments, and each is short.
        """
        import torch

        new = torch.arange(load.first, load.end, device=self._device)
        old = new.clone()
        for segment in load.segments:
            if self._moves(segment):
                first, after = max(segment.start, load.first), min(segment.end, load.end)
                old[first - load.first : after - load.first] -= segment.start - len(self._store.manifest.prefix_ids)

        def turner(mover: Mover | None) -> Callable[[slice, Any], Any] | None:
            if mover is None:
                return None
            cos, sin = mover.turn(old, new)
            return lambda tokens, keys: mover.apply_(keys, (cos[tokens], sin[tokens]))

        return [(turner(mover), numbers) for mover, numbers in self._groups]

    def _shape(self, segment: Segment) -> tuple[int, ...]:
        """The shape of a segment's piece on this device."""
        layer = self._layers[0]
        return (2, len(self._layers), segment.end - segment.start, layer.num_kv_heads, layer.head_size)

    def _packed(self, kv: Any) -> Piece:
        """A new piece in the store's precision, in host memory."""
        precision = self._store.manifest.precision
        if precision == "model":
            return Piece(kv)
        small = packed(kv.to(self._device), precision)
        return Piece(small.kv.cpu(), small.scales.cpu())

    def _keep_in_memory(self, name: str, kv: Any) -> None:
        assert self._tiers is not None
        self._tiers.keep(name, self._packed(kv))
        self._store.mark(name)

    def _write(self, name: str, kv: Any) -> None:
        try:
            self._store.write(name, self._packed(kv))
        except (OSError, DataError) as error:  # such as a full disk; requests must not fail for it
            _log.warning("%s: not kept: %s", self._store.path(name), getattr(error, "strerror", None) or error)


def gathered(kv: Any, group: Any) -> Any:
    """All heads of a piece, from the share [2, layers, tokens, heads, features] of each worker of a group."""
    import torch

    share = kv.contiguous().view(torch.uint8)  # gloo does not know every dtype
    shares = [torch.empty_like(share) for _ in range(group.world_size)]
    torch.distributed.all_gather(shares, share, group=group.cpu_group)
    return torch.cat([one.view(kv.dtype) for one in shares], dim=3)


def _recorded(update: Callable[..., Any], recorder: Recorder, number: int) -> Callable[..., Any]:
    """A layer's cache update that first lets the recorder see what it writes."""

    def recorded(layer: Any, key: Any, value: Any, kv_cache: Any, slot_mapping: Any) -> Any:
        if recorder.is_recording:
            recorder.record(number, key, value, slot_mapping)
        return update(layer, key, value, kv_cache, slot_mapping)

    return recorded


def _is_plain(layer: Any) -> bool:
    """Whether a layer has keys and values of its own."""
    has_sizes = all(hasattr(layer, name) for name in ("num_kv_heads", "head_size", "head_size_v"))
    shares = getattr(layer, "kv_sharing_target_layer_name", None) is not None
    return has_sizes and not shares and hasattr(layer.impl, "do_kv_cache_update")


def _layer_number(name: str) -> int:
    """Of ``model.layers.12.self_attn.attn``: 12."""
    numbers = re.findall(r"\.(\d+)\.", name)
    return int(numbers[0]) if numbers else 0
