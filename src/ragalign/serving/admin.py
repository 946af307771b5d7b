"""Endpoints for operators: health, readiness, metrics, and reloading the index."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from ragalign.serving.errors import ApiError
from ragalign.serving.metrics import CONTENT_TYPE
from ragalign.serving.service import Service


def make_admin_router(service: Service) -> APIRouter:
    """The routes ``/health``, ``/ready``, ``/metrics`` and ``/admin/reload`` of `service`."""
    router = APIRouter()

    @router.get("/health", summary="Whether the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", summary="Whether requests can be answered")
    async def ready() -> dict[str, Any]:
        if service.is_draining:
            raise ApiError(503, "this service is about to shut down", code="draining", retry_after_s=1)
        if not service.generator.is_ready:
            raise ApiError(503, "no engine is available at the moment", code="unavailable", retry_after_s=1)
        return {"status": "ready", "model": service.catalog.name, "index_generation": service.catalog.version}

    @router.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(await service.metrics_text(), media_type=CONTENT_TYPE)

    @router.post("/admin/reload", summary="Reload the index")
    async def reload() -> dict[str, Any]:
        catalog = await service.reload()
        sizes = {name: len(aligner.packer.pool) for name, aligner in catalog.aligners.items()}
        return {"index_generation": catalog.version, "demonstrations": sizes}

    return router
