"""Ray's errors in one line: they are long tracebacks, and the cause comes last."""

from __future__ import annotations

from typing import Any

from ragalign.errors import GenerationError, RagalignError
from ragalign.generation.base import one_line

# Ray's words before the reason for a death, after the actor's ids.
_REASON = "The actor is dead because "


def is_death(ray: Any, error: Exception) -> bool:
    """Whether an actor or its node is gone, instead of having failed with an error of its own."""
    errors = ray.exceptions
    gone = (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError, errors.WorkerCrashedError)
    return isinstance(error, gone) and not getattr(error, "actor_init_failed", False)


def reason_of(ray: Any, error: Exception) -> str:
    """The cause of one of Ray's errors, on one line."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        # An exception that cannot be sent is replaced by one with its traceback.
        if isinstance(cause, BaseException) and not isinstance(cause, ray.exceptions.RayError):
            return one_line(cause) if isinstance(cause, RagalignError) else _named(cause)
        return _last_line(error.traceback_str)
    if getattr(error, "actor_init_failed", False):
        return _last_line(str(error))
    _, found, reason = str(error).partition(_REASON)
    return one_line(ValueError(reason)) if found else one_line(error)


def as_raised(ray: Any, error: Exception) -> RagalignError:
    """The exception to raise for an error of a worker: its own error if that is ragalign's."""
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, RagalignError):
        return error.cause
    if isinstance(error, ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False):
        return GenerationError(f"a worker failed: {reason_of(ray, error)}")
    return GenerationError(f"the Ray cluster failed: {reason_of(ray, error)}")


def _named(error: BaseException) -> str:
    name, text = type(error).__name__, one_line(error)
    return text if text == name else f"{name}: {text}"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(ValueError(lines[-1])) if lines else "unknown reason"
