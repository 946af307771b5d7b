"""OpenAI's own client notices nothing: the service over the real vLLM engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fixtures.chat import MESSAGES

from ragalign.aligner import Aligner

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}


def test_the_answer_is_the_aligners(live: Any, client: Any) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30, temperature=0)
    aligner: Aligner = live.service.catalog.aligners["ica"]
    expected = aligner.chat(MESSAGES, decoding=replace(aligner.decoding, temperature=0.0, max_tokens=30))
    [choice] = answer.choices
    assert choice.message.content == expected.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.n_prompt_tokens
    assert answer.usage.completion_tokens == expected.n_output_tokens
    assert answer.usage.total_tokens == expected.n_prompt_tokens + expected.n_output_tokens
    assert answer.model == "tiny"
    assert answer.object == "chat.completion"


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 1.0, "seed": 7}, {"temperature": 1.5, "seed": -3}]
)
@pytest.mark.parametrize("model", ["tiny", "tiny:urial", "tiny:zero-shot"])
def test_a_stream_adds_up_to_the_whole_answer(client: Any, model: str, settings: dict[str, Any]) -> None:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 40, **settings}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert all("\ufffd" not in text for text in texts) or "\ufffd" in whole.choices[0].message.content
    assert len([text for text in texts if text]) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_characters_of_several_bytes_are_never_split(client: Any) -> None:
    """At this temperature, the tiny model draws tokens that are parts of characters."""
    body = {"model": "tiny:zero-shot", "messages": MESSAGES, "max_tokens": 400, "temperature": 2.0, "seed": 4}
    whole = client.chat.completions.create(**body).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**body, stream=True)]
    assert "".join(pieces) == whole
    assert any(len(character.encode()) > 1 for character in whole if character != "\ufffd")


def test_a_stream_says_no_usage_unasked(client: Any) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_stop_strings_never_show(client: Any) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
    text = client.chat.completions.create(**body).choices[0].message.content
    middle = text[len(text) // 2 : len(text) // 2 + 4]
    stopped = client.chat.completions.create(**body, stop=[middle])
    streamed = client.chat.completions.create(**body, stop=middle, stream=True)
    expected = text.split(middle)[0].rstrip()
    assert stopped.choices[0].message.content == expected
    assert stopped.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected


def test_several_answers_differ_and_can_be_repeated(client: Any) -> None:
    body = {"model": "tiny:zero-shot", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0, "n": 3, "seed": 5}
    first, again = (client.chat.completions.create(**body) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert first.usage.completion_tokens == 36
    streamed = dict.fromkeys(range(3), "")
    for chunk in client.chat.completions.create(**body, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts


def test_the_second_time_the_prompt_is_cached(client: Any) -> None:
    messages = [{"role": "user", "content": "How do I keep a sourdough starter alive in winter?"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 2}
    client.chat.completions.create(**body)
    usage = client.chat.completions.create(**body).usage
    # All whole blocks but the last one, which the engine recomputes.
    assert usage.prompt_tokens - 64 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_a_later_turn_finds_its_prefix_in_the_cache(client: Any) -> None:
    turns: list[Any] = [{"role": "user", "content": "What should I plant in a shady garden?"}]
    options = {"ragalign": {"explain": True, "max_tokens": 1000}}
    body = {"model": "tiny", "max_tokens": 4, "extra_body": options}
    first = client.chat.completions.create(messages=turns, **body)
    turns += [
        first.choices[0].message.to_dict(),
        {"role": "user", "content": "Which of these plants grow in a shady garden fastest?"},
    ]
    second = client.chat.completions.create(messages=turns, **body)
    assert not first.ragalign["demonstrations_kept"]
    assert second.ragalign["demonstrations_kept"]

    def used(answer: Any) -> list[str]:
        return [piece["id"] for piece in answer.ragalign["pieces"] if piece["kind"] == "demonstration"]

    assert used(first) == used(second) != []
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached >= first.ragalign["tokens"]["demonstrations"] - 32
    turns += [
        {"role": "assistant", "content": "Ferns."},
        {"role": "user", "content": "Explain how a bill becomes law."},
    ]
    third = client.chat.completions.create(messages=turns, **body)
    assert not third.ragalign["demonstrations_kept"]
    assert used(third) != used(second)


def test_explaining_tells_the_prompt_to_the_token(live: Any, client: Any) -> None:
    options = {"ragalign": {"explain": True, "max_demonstrations": 3, "max_tokens": 1200}}
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, extra_body=options)
    told = answer.ragalign
    tokens = told["tokens"]
    demonstrations = [piece for piece in told["pieces"] if piece["kind"] == "demonstration"]
    assert 1 <= len(demonstrations) <= 3
    assert [one["score"] for one in demonstrations] == sorted(one["score"] for one in demonstrations)
    assert tokens["prompt"] == answer.usage.prompt_tokens
    assert tokens["budget"] == 1200 >= tokens["demonstrations"]
    assert sum(piece["n_tokens"] for piece in told["pieces"]) + tokens["special"] == tokens["prompt"]
    tokenizer = live.service.catalog.aligners["ica"].packer.tokenizer
    text = "".join(piece["text"] for piece in told["pieces"])
    assert len(tokenizer.encode(text)) + tokens["special"] == tokens["prompt"]
    assert all(one["reason"] in ("too_long", "budget", "context", "stopped") for one in told["dropped"])
    assert told["seconds"]["total"] >= told["seconds"]["first_token"] > 0


def test_demonstrations_can_be_excluded(client: Any) -> None:
    def used(**options: Any) -> list[str]:
        body = {"ragalign": {"explain": True, "max_demonstrations": 2, **options}}
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1, extra_body=body)
        pieces = answer.model_extra["ragalign"]["pieces"]
        return [piece["id"] for piece in pieces if piece["kind"] == "demonstration"]

    before = used()
    assert not set(before) & set(used(exclude=before))


def test_a_system_message_joins_the_preamble(client: Any) -> None:
    messages = [{"role": "system", "content": "Answer in rhyme."}, *MESSAGES]
    options = {"ragalign": {"explain": True}}
    answer = client.chat.completions.create(model="tiny:urial", messages=messages, max_tokens=1, extra_body=options)
    preamble = answer.ragalign["pieces"][0]
    assert preamble["kind"] == "preamble"
    assert preamble["text"].rstrip().endswith("Answer in rhyme.")


def test_a_plain_completion_goes_to_the_model_as_it_is(live: Any, client: Any, make_prompt_ids: Any) -> None:
    body = {"model": "tiny", "max_tokens": 10, "temperature": 0}
    text = client.completions.create(prompt="The train leaves at", **body)
    ids = client.completions.create(prompt=make_prompt_ids("The train leaves at"), **body)
    assert text.choices[0].text == ids.choices[0].text
    assert text.choices[0].text.startswith(" ") or text.choices[0].text
    assert text.usage.prompt_tokens == len(make_prompt_ids("The train leaves at"))
    both = client.completions.create(prompt=["The train leaves at", "Crème"], **body)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == text.choices[0].text
    streamed = client.completions.create(prompt="The train leaves at", stream=True, **body)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.choices[0].text


@pytest.fixture
def make_prompt_ids(live: Any) -> Any:
    tokenizer = live.service.catalog.aligners["ica"].packer.tokenizer
    return lambda text: [*tokenizer.prefix_ids, *tokenizer.encode(text)]


def test_the_models_are_the_recipes(client: Any) -> None:
    names = {model.id for model in client.models.list()}
    assert {"tiny", "tiny:ica", "tiny:urial", "tiny:zero-shot"} <= names


@pytest.mark.slow
def test_logprobs_are_the_engines(command: Any) -> None:
    with openai.OpenAI(base_url=f"{command.url}/v1", api_key="none") as client:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
        answer = client.chat.completions.create(**body, logprobs=True, top_logprobs=2)
        tokens = answer.choices[0].logprobs.content
        assert "".join(one.token for one in tokens).strip() == answer.choices[0].message.content
        for one in tokens:
            assert len(one.top_logprobs) == 2
            # Greedy: the drawn token is the most likely one.
            assert one.token == one.top_logprobs[0].token
            assert one.logprob == one.top_logprobs[0].logprob <= 0
            assert bytes(one.bytes).decode() == one.token
        streamed = list(client.chat.completions.create(**body, logprobs=True, stream=True))
        found = [one.token for chunk in streamed for c in chunk.choices if c.logprobs for one in c.logprobs.content]
        assert found == [one.token for one in tokens]


def test_without_logprobs_of_its_own_an_engine_refuses_them(live: Any) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none") as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True)


def test_many_at_once_from_the_asynchronous_client(url: str) -> None:
    async def work() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                messages = [{"role": "user", "content": f"Tell me {number} facts."}]
                body = {"model": "tiny:zero-shot", "messages": messages, "max_tokens": 16, "temperature": 0}
                stream = await client.chat.completions.create(**body, stream=True)  # type: ignore[call-overload]
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                whole = await client.chat.completions.create(**body)  # type: ignore[call-overload]
                assert text == whole.choices[0].message.content
                return text

            return await asyncio.gather(*(one(number) for number in range(12)))

    assert len(set(asyncio.run(work()))) > 3


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "messages[0].content[0].type"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}, 400, "messages[1].role"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "x"}]}, 400, "messages[1].role"),
        ({"messages": [{"role": "assistant", "content": "x"}, *MESSAGES]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, 400, "messages"),
        ({"model": "other"}, 404, "model"),
        ({"model": "tiny:other"}, 404, "model"),
        ({"temperature": 2.1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": -0.1}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"max_completion_tokens": 10**30}, 400, "max_completion_tokens"),
        ({"n": 9}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"seed": 2**70}, 400, "seed"),
        ({"stop": ["a", 1]}, 400, "stop[1]"),
        ({"stop": [""]}, 400, "stop"),
        ({"presence_penalty": 3}, 400, "presence_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"logit_bias": {"five": 3}}, 400, "logit_bias"),
        ({"logit_bias": {"5": 101}}, 400, "logit_bias.5"),
        ({"logit_bias": {"99999999": 1}}, 400, "logit_bias"),
        ({"stop_token_ids": [99999999]}, 400, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, 400, "stop_token_ids"),
        ({"top_k": 1.5}, 400, "top_k"),
        ({"top_k": -2}, 400, "top_k"),
        ({"min_p": 1.01}, 400, "min_p"),
        ({"min_tokens": 5, "max_tokens": 4}, 400, "min_tokens"),
        ({"repetition_penalty": 0}, 400, "repetition_penalty"),
        ({"repetition_penalty": 1.1, "output_repetition_penalty": 1.1}, 400, "output_repetition_penalty"),
        ({"ignore_eos": 1}, 400, "ignore_eos"),
        ({"stop": [str(n) for n in range(17)]}, 400, "stop"),
        ({"stop": "x" * 1025}, 400, "stop"),
        ({"guided_json": {}, "structured_outputs": {"json": {}}}, 400, "structured_outputs"),
        ({"ragalign": {"explian": True}}, 400, "ragalign.explian"),
        ({"ragalign": {"where": {"a\nb": [[]]}}}, 400, "ragalign.where.a\nb[0]"),
        ({"ragalign": {"max_demonstrations": -1}}, 400, "ragalign.max_demonstrations"),
        ({"stream_options": {"include_usage": "yes"}}, 400, "stream_options.include_usage"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_named(live: Any, body: dict[str, Any], status: int, param: str, stream: bool) -> None:
    sent = {"model": "tiny", "messages": MESSAGES, "stream": stream, **body}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_fields_that_nobody_knows_are_let_pass(client: Any) -> None:
    more = {
        "tools": [],
        "tool_choice": "none",
        "store": False,
        "metadata": {"a": "b"},
        "reasoning_effort": "low",
        "x": 1,
    }
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1, user="me", extra_body=more)
    assert answer.usage.completion_tokens == 1


def test_parts_of_text_and_neighbouring_messages_are_one_turn(client: Any) -> None:
    parts = [{"type": "text", "text": "Why is"}, {"type": "text", "text": "the sky blue?"}]
    messages = [{"role": "user", "content": parts}, {"role": "user", "content": "Be brief."}]
    options = {"ragalign": {"explain": True}}
    answer = client.chat.completions.create(model="tiny:zero-shot", messages=messages, max_tokens=1, extra_body=options)
    assert "Why is\nthe sky blue?\n\nBe brief." in answer.ragalign["pieces"][-1]["text"]
