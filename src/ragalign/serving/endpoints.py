"""The OpenAI-compatible endpoints under ``/v1``."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ragalign.serving.answering import Part
from ragalign.serving.bodies import read_object
from ragalign.serving.body_models import parse
from ragalign.serving.disconnects import run_until_disconnect
from ragalign.serving.errors import ApiError
from ragalign.serving.explaining import demonstrations_of, explain_prompt, explain_timings
from ragalign.serving.preparing import Prepared
from ragalign.serving.requests import ChatRequest, CompletionRequest, RagalignOptions
from ragalign.serving.service import RequestTimings, ResolvedChat, Service, log
from ragalign.serving.shapes import DONE, Envelope, Usage, chat_logprobs, encode, text_logprobs
from ragalign.serving.streaming import EventStream, Write
from ragalign.types import Decoding

_REFS = "#/components/schemas/"
# The field ``warnings`` of an answer, or nothing.
Warnings = dict[str, Any]


def make_router(service: Service) -> APIRouter:
    """The routes of `service`."""
    router = APIRouter(prefix="/v1")
    limits = service.settings.limits

    async def body_of(request: Request) -> dict[str, Any]:
        return await read_object(request, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)

    @router.get("/models", summary="The recipes, as models")
    async def models() -> dict[str, Any]:
        catalog = service.catalog
        context = service.generator.context_length
        cards = []
        for name in catalog.models:
            recipe, aligner = catalog.resolve(name)
            decoding = {"temperature": aligner.decoding.temperature, "max_tokens": aligner.decoding.max_tokens}
            own = {"recipe": recipe, "demonstrations": demonstrations_of(aligner), "decoding": decoding}
            card = {"id": name, "object": "model", "created": 0, "owned_by": "ragalign"}
            cards.append({**card, "max_model_len": context, "ragalign": own})
        return {"object": "list", "data": cards}

    @router.post("/chat/completions", summary="Answer a conversation", openapi_extra=_body("ChatRequest"))
    async def chat(request: Request) -> Response:
        timings = RequestTimings()
        asked = parse(ChatRequest, await body_of(request), limits)
        catalog = service.catalog
        recipe, aligner = catalog.resolve(asked.model)
        default, lost = service.capabilities.served(aligner.decoding)
        warnings = service.warnings(asked, lost)
        resolved = ResolvedChat(
            catalog,
            recipe,
            aligner,
            asked.turns(),
            asked.decoding(default, limits, service.capabilities),
            asked.ragalign or RagalignOptions(),
            asked.n_logprobs,
            whole=not asked.stream,
        )
        if service.settings.log_prompts:
            log.info("asked: %s", [(turn.role, turn.content) for turn in resolved.turns])
        if asked.stream:
            return EventStream(partial(_chat_events, service, asked, resolved, timings, warnings), limits.timeout_s)
        return _json(
            await run_until_disconnect(
                _chat_whole(service, asked, resolved, timings, warnings), request.receive, limits.timeout_s
            )
        )

    @router.post("/completions", summary="Continue a plain prompt", openapi_extra=_body("CompletionRequest"))
    async def completions(request: Request) -> Response:
        timings = RequestTimings()
        asked = parse(CompletionRequest, await body_of(request), limits)
        service.catalog.resolve(asked.model)
        # The defaults of OpenAI's endpoint.
        decoding = asked.decoding(Decoding(temperature=1.0, max_tokens=16), limits, service.capabilities)
        prompts = asked.prompts(service.capabilities)
        warnings = service.warnings(asked)
        if len(prompts) * decoding.n > limits.max_running:
            raise ApiError(400, f"at most {limits.max_running} completions at once", param="prompt")
        if asked.stream:
            return EventStream(
                partial(_text_events, service, asked, prompts, decoding, timings, warnings), limits.timeout_s
            )
        whole = _text_whole(service, asked, prompts, decoding, timings, warnings)
        return _json(await run_until_disconnect(whole, request.receive, limits.timeout_s))

    return router


async def _chat_events(
    service: Service, asked: ChatRequest, chat: ResolvedChat, timings: RequestTimings, warnings: Warnings, write: Write
) -> None:
    envelope = Envelope(asked.model, "chat.completion.chunk", "chatcmpl")
    no_usage: dict[str, Any] = {"usage": None} if asked.wants_usage else {}
    usage = Usage()
    n_left = chat.decoding.n
    texts: list[str] = []
    has_begun = False
    async with service.chat(chat, timings) as (prepared, parts):
        usage.n_prompt = len(prepared.prompt.ids)
        async for part in parts:
            if not has_begun:
                has_begun = True
                head = [_choice(index, {"role": "assistant", "content": ""}) for index in range(chat.decoding.n)]
                await write(envelope.chunk(head, **no_usage, **_explained(service, chat, prepared)))
            if service.settings.log_prompts:
                texts.append(part.text)
            logprobs = chat_logprobs(part.logprobs, chat.logprobs) if chat.logprobs is not None else None
            if part.text or part.logprobs:
                await write(envelope.chunk([_choice(part.index, {"content": part.text}, logprobs)], **no_usage))
            if part.finish_reason is not None:
                usage.add(part)
                n_left -= 1
                more = _timed(chat, prepared, timings, usage) if n_left == 0 else {}
                if n_left == 0 and not asked.wants_usage:
                    more |= warnings
                await write(envelope.chunk([_choice(part.index, {}, reason=part.finish_reason)], **no_usage, **more))
    if asked.wants_usage:
        await write(envelope.chunk([], usage=usage.as_json(), **warnings))
    await write(DONE)
    if texts:
        log.info("answered: %s", "".join(texts))


async def _chat_whole(
    service: Service, asked: ChatRequest, chat: ResolvedChat, timings: RequestTimings, warnings: Warnings
) -> dict[str, Any]:
    usage = Usage()
    answers = _Gathered(chat.decoding.n)
    async with service.chat(chat, timings) as (prepared, parts):
        usage.n_prompt = len(prepared.prompt.ids)
        async for part in parts:
            answers.add(part)
            usage.add(part)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": chat_logprobs(logprobs, chat.logprobs) if chat.logprobs is not None else None,
            "finish_reason": reason,
        }
        for index, (text, logprobs, reason) in enumerate(answers.all())
    ]
    if service.settings.log_prompts:
        log.info("answered: %s", [choice["message"] for choice in choices])
    envelope = Envelope(asked.model, "chat.completion", "chatcmpl")
    shown = _explained(service, chat, prepared)
    if shown:
        shown["ragalign"] |= _timed(chat, prepared, timings, usage)["ragalign"]
    return envelope.wrap(envelope.kind, choices, usage=usage.as_json(), **shown, **warnings)


async def _text_events(
    service: Service,
    asked: CompletionRequest,
    prompts: list[str | list[int]],
    decoding: Decoding,
    timings: RequestTimings,
    warnings: Warnings,
    write: Write,
) -> None:
    envelope = Envelope(asked.model, "text_completion", "cmpl")
    no_usage: dict[str, Any] = {"usage": None} if asked.wants_usage else {}
    usage = Usage()
    offsets: dict[int, int] = {}
    n_left = len(prompts) * decoding.n
    for number, prompt in enumerate(prompts):
        completion = service.complete(prompt, decoding, timings, logprobs=asked.logprobs, whole=False)
        async with completion as (made, parts):
            usage.n_prompt += len(made.ids)
            async for part in parts:
                usage.add(part)
                if part.text or part.logprobs or part.finish_reason:
                    index = number * decoding.n + part.index
                    n_left -= part.finish_reason is not None
                    more = warnings if n_left == 0 and not asked.wants_usage else {}
                    await write(envelope.chunk([_text_choice(part, index, asked, offsets)], **no_usage, **more))
    if asked.wants_usage:
        await write(envelope.chunk([], usage=usage.as_json(), **warnings))
    await write(DONE)


async def _text_whole(
    service: Service,
    asked: CompletionRequest,
    prompts: list[str | list[int]],
    decoding: Decoding,
    timings: RequestTimings,
    warnings: Warnings,
) -> dict[str, Any]:
    usage = Usage()
    choices: list[dict[str, Any]] = []
    for prompt in prompts:
        answers = _Gathered(decoding.n)
        completion = service.complete(prompt, decoding, timings, logprobs=asked.logprobs, whole=True)
        async with completion as (made, parts):
            usage.n_prompt += len(made.ids)
            async for part in parts:
                answers.add(part)
                usage.add(part)
        for text, logprobs, reason in answers.all():
            shown = text_logprobs(logprobs, 0) if asked.logprobs is not None else None
            choices.append({"index": len(choices), "text": text, "logprobs": shown, "finish_reason": reason})
    envelope = Envelope(asked.model, "text_completion", "cmpl")
    return envelope.wrap(envelope.kind, choices, usage=usage.as_json(), **warnings)


class _Gathered:
    """Joins the parts of several answers."""

    def __init__(self, n: int) -> None:
        self._parts: list[list[Part]] = [[] for _ in range(n)]

    def add(self, part: Part) -> None:
        self._parts[part.index].append(part)

    def all(self) -> list[tuple[str, list[Any], str | None]]:
        return [
            (
                "".join(part.text for part in parts),
                [token for part in parts for token in part.logprobs],
                parts[-1].finish_reason,
            )
            for parts in self._parts
        ]


def _explained(service: Service, chat: ResolvedChat, prepared: Prepared) -> dict[str, Any]:
    if not chat.options.explain:
        return {}
    return {"ragalign": explain_prompt(chat, prepared, service.generator.context_length)}


def _timed(chat: ResolvedChat, prepared: Prepared, timings: RequestTimings, usage: Usage) -> dict[str, Any]:
    if not chat.options.explain:
        return {}
    return {"ragalign": explain_timings(timings, prepared, usage.n_cached, usage.n_reused)}


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _text_choice(part: Part, index: int, asked: CompletionRequest, offsets: dict[int, int]) -> dict[str, Any]:
    before = offsets.get(index, 0)
    offsets[index] = before + sum(len(token.token) for token in part.logprobs)
    logprobs = text_logprobs(part.logprobs, before) if asked.logprobs is not None else None
    return {"index": index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason}


def _json(value: Any) -> Response:
    return Response(encode(value), media_type="application/json")


def _body(name: str) -> dict[str, Any]:
    schema = {"$ref": f"{_REFS}{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
