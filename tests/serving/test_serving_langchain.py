"""LangChain's ChatOpenAI takes the service for OpenAI's."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.scripted_server import ScriptedServer

openai_chat = pytest.importorskip("langchain_openai", reason="needs the `dev` extra")


def test_chat_openai_answers_streams_and_sees_usage(upstream_service: Any) -> None:
    with ScriptedServer(lambda _: "a fine answer", cached_tokens=3) as server, upstream_service(server) as running:
        model = openai_chat.ChatOpenAI(
            model="tiny:urial", base_url=f"{running.url}/v1", api_key="x", max_retries=0, temperature=0
        )
        whole = model.invoke([("system", "Be brief."), ("human", "Why is the sky blue?")])
        assert whole.content == "a fine answer"
        assert whole.usage_metadata["input_token_details"]["cache_read"] == 3
        parts = [part.content for part in model.stream("Why is the sky blue?")]
        assert "".join(parts) == "a fine answer"
        assert len(parts) > 2
        with pytest.raises(Exception, match="nothing"):
            model.bind(model="nothing").invoke("x")
