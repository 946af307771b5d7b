"""``/v1``: the endpoints that OpenAI's clients know."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ragalign.serving.answering import Part
from ragalign.serving.bodies import read_object
from ragalign.serving.errors import ApiError
from ragalign.serving.explaining import demonstrations_of, explain_prompt, explain_timings
from ragalign.serving.leaving import EventStream, while_connected
from ragalign.serving.preparing import Prepared
from ragalign.serving.requests import ChatRequest, CompletionRequest, RagalignOptions, parse
from ragalign.serving.service import Service, Timings, Wish, log
from ragalign.serving.shapes import DONE, Envelope, Usage, chat_logprobs, encode, event, text_logprobs
from ragalign.types import ClosableAsyncIterator, Decoding, Prompt

_REFS = "#/components/schemas/"


def make_router(service: Service) -> APIRouter:
    """The endpoints of `service`."""
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
        timings = Timings()
        asked = parse(ChatRequest, await body_of(request))
        catalog = service.catalog
        recipe, aligner = catalog.resolve(asked.model)
        wish = Wish(
            catalog,
            recipe,
            aligner,
            asked.turns(limits),
            asked.decoding(aligner.decoding, limits),
            asked.ragalign or RagalignOptions(),
            asked.n_logprobs,
            whole=not asked.stream,
        )
        if service.settings.log_prompts:
            log.info("asked: %s", [(turn.role, turn.content) for turn in wish.turns])
        if asked.stream:
            return await _streamed(request, _chat_events(service, asked, wish, timings))
        async with while_connected(request.receive):
            return _json(await _chat_whole(service, asked, wish, timings))

    @router.post("/completions", summary="Continue a prompt as it is", openapi_extra=_body("CompletionRequest"))
    async def completions(request: Request) -> Response:
        timings = Timings()
        asked = parse(CompletionRequest, await body_of(request))
        service.catalog.resolve(asked.model)
        # What OpenAI's endpoint does with what is not said.
        decoding = asked.decoding(Decoding(temperature=1.0, max_tokens=16), limits)
        prompts = asked.prompts()
        if len(prompts) * decoding.n > limits.max_running:
            raise ApiError(400, f"at most {limits.max_running} completions at once", param="prompt")
        if asked.stream:
            return await _streamed(request, _text_events(service, asked, prompts, decoding, timings))
        async with while_connected(request.receive):
            return _json(await _text_whole(service, asked, prompts, decoding, timings))

    return router


async def _streamed(request: Request, events: ClosableAsyncIterator[bytes]) -> Response:
    """A stream whose beginning has come: until then, errors still have a status of their own."""
    try:
        async with while_connected(request.receive):
            first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def rest() -> ClosableAsyncIterator[bytes]:
        try:
            yield first
            try:
                async for part in events:
                    yield part
            except ApiError as error:
                yield event(error.body)
                yield DONE
                raise
        finally:
            await events.aclose()

    return EventStream(rest())


async def _chat_events(
    service: Service, asked: ChatRequest, wish: Wish, timings: Timings
) -> ClosableAsyncIterator[bytes]:
    envelope = Envelope(asked.model, "chat.completion.chunk", "chatcmpl")
    no_usage: dict[str, Any] = {"usage": None} if asked.wants_usage else {}
    usage = Usage()
    n_left = wish.decoding.n
    pieces: list[str] = []
    prepared: Prepared | None = None
    begun: set[int] = set()
    async for item in service.chat(wish, timings):
        if isinstance(item, Prepared):
            prepared = item
            usage.n_prompt = len(item.prompt.ids)
            continue
        assert prepared is not None
        if not begun:
            shown = _explained(service, wish, prepared)
            head = [_choice(index, {"role": "assistant", "content": ""}) for index in range(wish.decoding.n)]
            yield envelope.chunk(head, **no_usage, **shown)
        begun.add(item.index)
        if service.settings.log_prompts:
            pieces.append(item.text)
        logprobs = chat_logprobs(item.logprobs, wish.logprobs) if wish.logprobs is not None else None
        if item.text or item.logprobs:
            yield envelope.chunk([_choice(item.index, {"content": item.text}, logprobs)], **no_usage)
        if item.finish_reason is not None:
            usage.add(item)
            n_left -= 1
            more = _timed(wish, prepared, timings, usage) if n_left == 0 else {}
            yield envelope.chunk([_choice(item.index, {}, reason=item.finish_reason)], **no_usage, **more)
    if asked.wants_usage:
        yield envelope.chunk([], usage=usage.as_json())
    yield DONE
    if pieces:
        log.info("answered: %s", "".join(pieces))


async def _chat_whole(service: Service, asked: ChatRequest, wish: Wish, timings: Timings) -> dict[str, Any]:
    prepared: Prepared | None = None
    usage = Usage()
    answers = _Gathered(wish.decoding.n)
    async for item in service.chat(wish, timings):
        if isinstance(item, Prepared):
            prepared = item
            usage.n_prompt = len(item.prompt.ids)
        else:
            answers.add(item)
            usage.add(item)
    assert prepared is not None
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": chat_logprobs(logprobs, wish.logprobs) if wish.logprobs is not None else None,
            "finish_reason": reason,
        }
        for index, (text, logprobs, reason) in enumerate(answers.all())
    ]
    if service.settings.log_prompts:
        log.info("answered: %s", [choice["message"] for choice in choices])
    envelope = Envelope(asked.model, "chat.completion", "chatcmpl")
    shown = _explained(service, wish, prepared)
    if shown:
        shown["ragalign"] |= _timed(wish, prepared, timings, usage)["ragalign"]
    return envelope.wrap(envelope.kind, choices, usage=usage.as_json(), **shown)


async def _text_events(
    service: Service, asked: CompletionRequest, prompts: list[str | list[int]], decoding: Decoding, timings: Timings
) -> ClosableAsyncIterator[bytes]:
    envelope = Envelope(asked.model, "text_completion", "cmpl")
    no_usage: dict[str, Any] = {"usage": None} if asked.wants_usage else {}
    usage = Usage()
    offsets: dict[int, int] = {}
    for number, prompt in enumerate(prompts):
        async for item in service.complete(prompt, decoding, timings, logprobs=asked.logprobs, whole=False):
            if isinstance(item, Prompt):
                usage.n_prompt += len(item.ids)
                continue
            usage.add(item)
            if item.text or item.logprobs or item.finish_reason:
                index = number * decoding.n + item.index
                yield envelope.chunk([_text_choice(item, index, asked, offsets)], **no_usage)
    if asked.wants_usage:
        yield envelope.chunk([], usage=usage.as_json())
    yield DONE


async def _text_whole(
    service: Service, asked: CompletionRequest, prompts: list[str | list[int]], decoding: Decoding, timings: Timings
) -> dict[str, Any]:
    usage = Usage()
    choices: list[dict[str, Any]] = []
    for prompt in prompts:
        answers = _Gathered(decoding.n)
        async for item in service.complete(prompt, decoding, timings, logprobs=asked.logprobs, whole=True):
            if isinstance(item, Prompt):
                usage.n_prompt += len(item.ids)
            else:
                answers.add(item)
                usage.add(item)
        for text, logprobs, reason in answers.all():
            shown = text_logprobs(logprobs, 0) if asked.logprobs is not None else None
            choices.append({"index": len(choices), "text": text, "logprobs": shown, "finish_reason": reason})
    envelope = Envelope(asked.model, "text_completion", "cmpl")
    return envelope.wrap(envelope.kind, choices, usage=usage.as_json())


class _Gathered:
    """The parts of several answers, put together."""

    def __init__(self, n: int) -> None:
        self._parts: list[list[Part]] = [[] for _ in range(n)]

    def add(self, part: Part) -> None:
        self._parts[part.index].append(part)

    def all(self) -> list[tuple[str, list[Any], str | None]]:
        return [
            (
                "".join(part.text for part in parts),
                [one for part in parts for one in part.logprobs],
                parts[-1].finish_reason,
            )
            for parts in self._parts
        ]


def _explained(service: Service, wish: Wish, prepared: Prepared) -> dict[str, Any]:
    if not wish.options.explain:
        return {}
    return {"ragalign": explain_prompt(wish, prepared, service.generator.context_length)}


def _timed(wish: Wish, prepared: Prepared, timings: Timings, usage: Usage) -> dict[str, Any]:
    return {"ragalign": explain_timings(timings, prepared, usage.n_cached)} if wish.options.explain else {}


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _text_choice(part: Part, index: int, asked: CompletionRequest, offsets: dict[int, int]) -> dict[str, Any]:
    before = offsets.get(index, 0)
    offsets[index] = before + sum(len(one.token) for one in part.logprobs)
    logprobs = text_logprobs(part.logprobs, before) if asked.logprobs is not None else None
    return {"index": index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason}


def _json(value: Any) -> Response:
    return Response(encode(value), media_type="application/json")


def _body(name: str) -> dict[str, Any]:
    schema = {"$ref": f"{_REFS}{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
