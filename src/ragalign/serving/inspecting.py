"""The inspector at ``/``: a page that shows the prompt that the model sees."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

_KINDS = {
    "inspector.css": "text/css; charset=utf-8",
    "inspector.js": "text/javascript; charset=utf-8",
    "inspector.html": "text/html; charset=utf-8",
}
# The page can only load its own two files and call its own service, even if markup is injected.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


def make_inspector() -> APIRouter:
    """The routes of the page and its two files; they have no data, so they need no key."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, name: str) -> None:
        content = (files("ragalign.serving") / "inspector" / name).read_bytes()
        headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

        @router.get(path, name=name)
        async def show() -> Response:
            return Response(content, media_type=_KINDS[name], headers=headers)

    add("/", "inspector.html")
    add("/inspector.js", "inspector.js")
    add("/inspector.css", "inspector.css")
    return router
