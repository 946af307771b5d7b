"""The FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragalign._optional import require
from ragalign.aligner import Aligner
from ragalign.generation.asynchronous import AsyncEngine, ThreadedEngine
from ragalign.generator import Generator
from ragalign.models import display_name
from ragalign.serving.catalog import Catalog, Load
from ragalign.serving.settings import ServingSettings

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_app(
    aligner: Aligner,
    *,
    recipes: Mapping[str, Aligner] | None = None,
    generator: Generator | AsyncEngine | None = None,
    name: str | None = None,
    settings: ServingSettings | None = None,
    load: Load | None = None,
) -> FastAPI:
    """Create the service as an application, to run with uvicorn or to mount in another application.

    The ``lifespan`` of a mounted application does not run automatically: the outer application's lifespan must enter
    ``app.router.lifespan_context(app)``.

    Args:
        aligner: serves the plain model name.
        recipes: further aligners by name, served as ``NAME:RECIPE``; the default aligner is added under its own name.
        generator: answers prompts; the aligner's generator by default. A synchronous one runs in threads.
        name: the model's name; by default the last part of the generator's model.
        settings: limits, keys and other settings.
        load: loads all aligners again, by name, for ``POST /admin/reload``.

    Raises:
        ConfigError: the aligner has no generator, and none is given.
        MissingDependencyError: the ``serve`` extra is not installed.
    """
    for package in ("fastapi", "prometheus_client"):
        require(package, "the service")
    from fastapi import FastAPI
    from pydantic.json_schema import models_json_schema
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware

    from ragalign.serving.admin import make_admin_router
    from ragalign.serving.endpoints import make_router
    from ragalign.serving.gate import Gate
    from ragalign.serving.inspecting import make_inspector
    from ragalign.serving.requests import ChatRequest, CompletionRequest
    from ragalign.serving.service import Service

    settings = settings or ServingSettings()
    answering = aligner.generator if generator is None else generator
    if not isinstance(answering, AsyncEngine):
        answering = ThreadedEngine(answering, most_at_once=settings.limits.max_running)
    default = aligner.name or "default"
    name = name or Path(display_name(answering.model)).name
    service = Service(Catalog(name, default, {default: aligner, **(recipes or {})}), answering, settings, load)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="ragalign",
        version=package_version("ragalign"),
        lifespan=lifespan,
        # The interactive documentation would load scripts from other servers.
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.service = service
    app.include_router(make_router(service))
    app.include_router(make_admin_router(service))
    app.include_router(make_inspector())

    async def passed_on(_: Any, error: Exception) -> Any:
        raise error  # the gate sends all errors in the same form

    # Not ApiError: an error with a handler becomes another error if the response has started, as in a stream.
    app.add_exception_handler(HTTPException, passed_on)
    app.add_middleware(Gate, service=service)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )

    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        models = [(ChatRequest, "validation"), (CompletionRequest, "validation")]
        _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app
