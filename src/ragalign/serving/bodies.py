"""Reading untrusted request bodies as JSON objects."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn

from ragalign.serving.disconnects import ClientLeftError
from ragalign.serving.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request


async def read_object(request: Request, *, max_bytes: int, timeout_s: float) -> dict[str, Any]:
    """Read the JSON object in a request's body.

    Raises:
        ApiError: 415 (wrong content type), 413 (too large; the rest is not read), 408 (too slow), or 400 (not a JSON
            object, nested too deeply, invalid numbers, or text that is not valid Unicode).
        ClientLeftError: the client disconnected before the end of the body.
    """
    from starlette.requests import ClientDisconnect

    # Web pages can send other content types to any address without a preflight request, but not this one.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send JSON, with the header 'Content-Type: application/json'")
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request, max_bytes)
    except TimeoutError:
        raise ApiError(408, f"the request's body did not arrive within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise ClientLeftError from None
    return parse_object(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse `body` as a JSON object.

    Raises:
        ApiError: 400.
    """
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_number)
        # JSON can escape half of a surrogate pair, which tokenizers and upstream servers cannot handle.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except UnicodeEncodeError:
        raise ApiError(400, "a string in the body has half of a surrogate pair, which is not valid Unicode") from None
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: byte {error.start + 1:,} is wrong") from None
    except (json.JSONDecodeError, _NotANumberError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    except ValueError:  # Python converts no more digits than sys.get_int_max_str_digits()
        raise ApiError(400, "the body contains a number with too many digits") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and len(announced) < 20 and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes:,} bytes", code="body_too_large")


class _NotANumberError(Exception):
    """NaN or an infinity, which Python's parser would accept."""


def _no_number(name: str) -> NoReturn:
    raise _NotANumberError(f"{name} is not a JSON number")
