"""Starting and stopping vLLM's engines."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import sys
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any

from ragalign._optional import require
from ragalign._quiet import environment, is_verbose, kept_process_state, quiet
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation.base import one_line

# Prompts share cached prefixes in whole blocks, so small blocks share most. 16 is vLLM's default on GPUs; its CPU
# attention supports only multiples of 32 (the default is 128).
GPU_BLOCK_SIZE = 16
CPU_BLOCK_SIZE = 32
# On CPUs the cache gets a quarter of the free memory, at most this.
CPU_CACHE_GIB = 4

# The least share of a GPU's memory that an engine is started with.
_LEAST_UTILIZATION = 0.1

# By name, so that an engine in another process finds it.
OUTPUT_PENALTY = "ragalign.generation._output_penalty:OutputRepetitionPenalty"

_OWN_OPTIONS = {
    "disable_log_stats": "ragalign reads the prefix-cache counters from it",
    "generation_config": "every decoding parameter is passed explicitly",
    "skip_tokenizer_init": "stop strings need the tokenizer",
}


def start_engine(options: dict[str, Any]) -> Any:
    """Create a `vllm.LLM` with these options; None means the default."""
    in_process = options["tensor_parallel_size"] == 1 and options.get("pipeline_parallel_size", 1) == 1
    in_process = in_process and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0") == "0"
    with ExitStack() as stack:
        # No usage reports unless the user enables them, and only results on stdout.
        stack.enter_context(environment(VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_STREAM="ext://sys.stderr"))
        if not is_verbose() and not in_process:
            stack.enter_context(environment(VLLM_LOGGING_LEVEL="ERROR"))
        if in_process:
            stack.enter_context(environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"))
            stack.enter_context(kept_process_state())
            if not is_verbose():
                # Without its own handlers vLLM follows the program's logging. `quiet` redirects native output, which
                # worker processes would inherit, so it is only used without them.
                stack.enter_context(environment(VLLM_CONFIGURE_LOGGING="0"))
                stack.enter_context(quiet())
        if not is_verbose() and (logger := logging.getLogger("vllm")).level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
        vllm = require("vllm", "the vLLM engine")
        check_options(options)
        fill_in(options, stack)
        if in_process:
            _check_alone()
            _survive_numba()
        try:
            return vllm.LLM(**options, generation_config="vllm", disable_log_stats=False)
        except Exception as error:
            if in_process:
                from vllm.distributed import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
            raise start_error(options["model"], error) from error


def stop_engine(llm: Any) -> None:
    """Shut down an engine; can be called more than once."""
    with quiet():
        llm.llm_engine.engine_core.shutdown()
        gc.collect()


def fill_in(options: dict[str, Any], stack: ExitStack) -> None:
    """Replace None by defaults that depend on the device."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if options["block_size"] is None:
        options["block_size"] = CPU_BLOCK_SIZE if on_cpu else GPU_BLOCK_SIZE
    if options["enforce_eager"] is None:
        options["enforce_eager"] = on_cpu
    if options.get("speculative_config") is None:  # vLLM does not support processors with it
        options["logits_processors"] = [*(options.get("logits_processors") or ()), OUTPUT_PENALTY]
    if options.get("kv_transfer_config") is not None:
        from vllm.config import KVTransferConfig

        if not on_cpu:
            _leave_gpu_memory(options, current_platform)
        options["kv_transfer_config"] = KVTransferConfig(**options["kv_transfer_config"])
    if on_cpu:
        # After a partial prefill vLLM (0.32) rewinds the random generator of a seeded request, which torch's CPU
        # generators do not support: such a request crashes the engine.
        options.setdefault("enable_chunked_prefill", False)
    if on_cpu and options.get("kv_cache_memory_bytes") is None:
        gib = require("psutil", "the vLLM engine").virtual_memory().available // 4 // 2**30
        stack.enter_context(environment(VLLM_CPU_KVCACHE_SPACE=str(min(max(gib, 1), CPU_CACHE_GIB))))


def _leave_gpu_memory(options: dict[str, Any], platform: Any) -> None:
    """Take what a connector keeps on each GPU out of the share of its memory that vLLM fills.

    Raises:
        ConfigError: too little would be left.
    """
    n_bytes = int(options["kv_transfer_config"].get("kv_connector_extra_config", {}).get("gpu_memory", 0))
    if not n_bytes:
        return
    total = int(platform.get_device_total_memory())
    left = options["gpu_memory_utilization"] - n_bytes / total
    if left < _LEAST_UTILIZATION:
        raise ConfigError(
            f"gpu_memory: {n_bytes / 1e9:,.0f} GB for keys and values leave the engine too little of the GPU's "
            f"{total / 1e9:,.0f} GB; lower it"
        )
    options["gpu_memory_utilization"] = left


def check_options(options: dict[str, Any]) -> None:
    """Reject options that vLLM does not know, or that ragalign depends on."""
    from vllm import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in options:
        if name in _OWN_OPTIONS:
            raise ConfigError(f"the vLLM option {name!r} cannot be changed: {_OWN_OPTIONS[name]}")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ConfigError(f"vLLM has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def start_error(model: str, error: Exception) -> ConfigError | GenerationError:
    """The reason why the engine did not start, in one line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return GenerationError(f"vLLM could not start {model}: {one_line(error)}")
    # One reason per option: otherwise each alternative of a union has its own.
    reasons = {str(detail["loc"][0]) if detail["loc"] else "": detail["msg"] for detail in reversed(error.errors())}
    text = "; ".join(f"{name}: {reason}" if name else reason for name, reason in reasons.items())
    text = one_line(ValueError(text.replace("Value error, ", "")))
    return ConfigError(f"vLLM rejected these options for {model}: {text}")


def _check_alone() -> None:
    """Reject a second engine in this process: it would share process groups, which closing an engine destroys."""
    from vllm.distributed.parallel_state import model_parallel_is_initialized

    if model_parallel_is_initialized():
        gc.collect()  # an engine without references
    if model_parallel_is_initialized():
        raise GenerationError(
            "a vLLM engine is already running in this process; close() the first generator, "
            "or set VLLM_ENABLE_V1_MULTIPROCESSING=1 to give each engine its own process"
        )


def _survive_numba() -> None:
    """Let vLLM (0.32, CPU) start in a process that has imported numba, as bm25s does.

    vLLM reads the ``__dict__`` of every attribute of every module. One object of llvmlite treats any name, including
    ``__dict__``, as a function of its library, and vLLM fails on the result.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    functions = getattr(getattr(ffi, "lib", None), "_fntab", None)
    if isinstance(functions, dict):
        functions.setdefault("__dict__", {})
