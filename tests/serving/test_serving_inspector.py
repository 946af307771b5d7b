"""The inspector in a real browser, over the real engine: it shows what the model saw, and only that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fixtures.live import LiveApp
from fixtures.scripted_server import ScriptedServer

from ragalign.serving import ServingSettings

ATTACK = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
LAPTOP, PHONE = (1280, 900), (390, 844)
TRIO = ["zero-shot", "urial", "ica"]


class Inspector:
    """The page as a person meets it."""

    def __init__(self, driver: Any, url: str, *, size: tuple[int, int] = LAPTOP, scheme: str = "light") -> None:
        self.driver = driver
        self.url = url
        driver.get_log("browser")
        driver.get_log("performance")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        driver.get(f"{url}/")

    def __call__(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def all(self, query: str, of: str = "innerText") -> list[Any]:
        return list(self(f"[...document.querySelectorAll(arguments[0])].map((one) => one.{of})", query))

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self("document.body.innerText")
            time.sleep(0.05)

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def keys_with(self, modifier: str, key: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def set(self, name: str, value: object) -> None:
        self("(document.getElementById(arguments[0]).value = arguments[1])", name, str(value))

    def choose(self, *recipes: str) -> None:
        self.wait(lambda: bool(self.all("#recipes input")))
        self(
            "document.querySelectorAll('#recipes input').forEach((one) =>"
            " { one.checked = arguments[0].includes(one.dataset.recipe); })",
            list(recipes),
        )

    def ask(self, question: str, *, n: int) -> None:
        """Type a question as a person does, and wait until the `n` answers of its round are there."""
        self.wait(lambda: bool(self.all("#recipes input")))
        self("document.getElementById('message').focus()")
        self.keys(question + "\n")
        self.wait(lambda: len(self.all("#rounds section:first-child article")) == n and not self.all("#stop:enabled"))

    @property
    def requests(self) -> list[str]:
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    @property
    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def page(chromium: Any, live: LiveApp) -> Iterator[Inspector]:
    shown = Inspector(chromium, live.url)
    yield shown
    assert shown.complaints == []


def told(url: str, question: str, recipe: str, **options: Any) -> dict[str, Any]:
    """What the API itself says about a prompt."""
    body = {"model": f"tiny:{recipe}", "messages": [{"role": "user", "content": question}], "max_tokens": 12}
    body |= {"temperature": 0, "ragalign": {"explain": True, **options}}
    answer: dict[str, Any] = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    return answer


def test_recipes_side_by_side_show_what_each_model_saw(page: Inspector) -> None:
    page.wait(lambda: bool(page.all("#recipes input")))
    # One of each kind comes first, and chosen.
    assert page.all("#recipes input:checked", "dataset.recipe") == TRIO
    page.set("temperature", 0)
    page.set("max_tokens", 12)
    page.ask("Why is the sky blue?", n=3)
    assert page.all("#rounds h2") == ["Why is the sky blue?"]
    assert page.all("article h3") == TRIO
    for number, recipe in enumerate(TRIO):
        api = told(page.url, "Why is the sky blue?", recipe)
        expected, tokens = api["ragalign"], api["ragalign"]["tokens"]
        column = f"article:nth-child({number + 1})"
        assert page.all(f"{column} .answer", "textContent") == [api["choices"][0]["message"]["content"]]
        # Each segment is as wide as its share of the prompt's tokens, to the pixel.
        widths = page.all(f"{column} .bar.prompt > *", "getBoundingClientRect().width")
        whole = page.all(f"{column} .bar.prompt", "getBoundingClientRect().width")[0]
        counts = [tokens["special"], *(piece["n_tokens"] for piece in expected["pieces"])]
        counts = [count for count in counts if count]
        assert widths == pytest.approx([whole * count / tokens["prompt"] for count in counts], abs=0.6)
        rows = [row.split("\t") for row in page.all(f"{column} .seen > .table tbody tr")]
        used = [piece for piece in expected["pieces"] if piece["kind"] == "demonstration"]
        shown = [[piece["instruction"], piece["score"], piece["n_tokens"]] for piece in used]
        assert [row[1:] for row in rows] == [
            ["fixed" if score is None else f"{score:.3f}", f"{n_tokens:,}"] for _, score, n_tokens in shown
        ]
        titles = page.all(f"{column} .seen > .table .line", "title")
        assert titles == [instruction for instruction, _, _ in shown]
        facts = page.all(f"{column} .facts")[0]
        assert facts.startswith(f"{tokens['prompt']:,} tokens of 2,048, 12 kept for the answer")
        # Cached and prefilled tokens are the whole prompt.
        legend = page.all(f"{column} .cache li")
        cached, prefilled = (int(one.split()[0].replace(",", "")) for one in legend)
        assert [one.split()[1] for one in legend] == ["cached", "prefilled"]
        assert cached + prefilled == tokens["prompt"]
        timings = page.all(f"{column} .timings li")
        assert [one.rsplit(" ", 2)[0] for one in timings] == [
            "queue", "retrieval", "packing", "to the first token", "answer"
        ]  # fmt: skip
        assert page.all(f"{column} [role=status]") == ["12 tokens, cut at the limit"]
    own = {f"{page.url}/", f"{page.url}/inspector.css", f"{page.url}/inspector.js"}
    own |= {f"{page.url}/v1/models", f"{page.url}/v1/chat/completions"}
    assert {request for request in page.requests if not request.startswith("data:")} == own


def test_what_was_dropped_is_listed_with_its_reason(page: Inspector) -> None:
    page.choose("ica")
    page.set("max_tokens", 12)
    page.set("budget", 300)
    page.ask("Why is the sky blue?", n=1)
    dropped = told(page.url, "Why is the sky blue?", "ica", max_tokens=300)["ragalign"]["dropped"]
    assert page.all(".dropped summary") == [f"{len(dropped)} retrieved, but not used"]
    assert dropped
    page("document.querySelector('.dropped').open = true")
    assert page.all(".dropped .line", "title") == [one["instruction"] for one in dropped]
    words = {"too_long": "too long", "budget": "over budget", "stopped": "after a misfit"}
    assert page.all(".dropped td:last-child") == [words[one["reason"]] for one in dropped]


def test_the_keyboard_is_enough(page: Inspector) -> None:
    from selenium.webdriver.common.keys import Keys

    page.choose("ica")
    page.set("max_tokens", 2)
    page.ask("Why is the sky blue?", n=1)
    # A segment opens as the arrows come to it, and shows its text.
    page("document.querySelector('.bar.prompt > *').focus()")
    api = told(page.url, "Why is the sky blue?", "ica")["ragalign"]
    for piece in api["pieces"]:
        page.keys(Keys.ARROW_RIGHT)
        assert page.all(".piece pre", "textContent") == [piece["text"]]
        assert len(page.all(".bar.prompt [aria-pressed=true]")) == 1
    page.keys(Keys.HOME)
    assert "special" in page.all(".piece p")[0]
    page.keys("/")
    assert page("document.activeElement.id") == "message"
    page.keys("first")
    page.keys_with(Keys.SHIFT, Keys.ENTER)
    page.keys("second")
    assert page("document.getElementById('message').value") == "first\nsecond"
    page.keys("\n")
    page.wait(lambda: page.all("#rounds h2")[0] == "first\nsecond" and not page.all("#stop:enabled"))


def test_a_conversation_goes_on_and_begins_anew(page: Inspector) -> None:
    page.choose("ica")
    page.set("max_tokens", 4)
    page.set("budget", 900)
    page.ask("What should I plant in a shady garden?", n=1)
    page.ask("Go on.", n=1)
    assert page.all("#rounds h2") == ["Go on.", "What should I plant in a shady garden?"]
    newest, before = page.all(".facts")
    assert "kept from the turn before" in newest
    assert "kept" not in before.replace("kept for the answer", "")
    query = page.all("#rounds section:first-child .query", "title")[0]
    page("document.querySelector('#rounds section:first-child .bar .query').click()")
    assert query.startswith("conversation: ")
    assert "shady garden" in page.all("#rounds section:first-child .piece pre", "textContent")[0]
    page("document.getElementById('new').click()")
    assert page.all("#rounds section") == []
    page.ask("Go on.", n=1)
    assert "kept from" not in page.all(".facts")[0]


def test_escape_stops_and_frees_the_engine(page: Inspector, live: LiveApp) -> None:
    from selenium.webdriver.common.keys import Keys

    page.choose("zero-shot")
    page.set("max_tokens", 1500)
    page.set("temperature", 1)
    # The random model may end an answer at any token; this one is to last until it is stopped.
    page(
        "(window.fetch = ((real) => (url, options) => real(url, options?.body"
        " ? { ...options, body: JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true }) }"
        " : options))(window.fetch)) && true"
    )
    page("document.getElementById('message').focus()")
    page.keys("Tell me a very long story.\n")
    page.wait(lambda: bool(page.all(".answer", "textContent")[0]))
    first = page.all(".answer", "textContent")[0]
    page.wait(lambda: len(page.all(".answer", "textContent")[0]) > len(first))  # it streams
    page.keys(Keys.ESCAPE)
    page.wait(lambda: page.all("[role=status]")[-1] == "stopped", 5)
    page.wait(lambda: live.service.admission.n_running == 0, 5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_it_is_at_home_on_phones_and_in_the_dark(
    chromium: Any, live: LiveApp, size: tuple[int, int], scheme: str
) -> None:
    page = Inspector(chromium, live.url, size=size, scheme=scheme)
    page.choose(*TRIO)
    page.set("max_tokens", 2)
    page.ask("Why is the sky blue?", n=3)
    assert page("document.documentElement.scrollWidth") <= size[0]
    tops = {round(top) for top in page.all("article", "getBoundingClientRect().top")}
    assert len(tops) == (3 if size == PHONE else 1)
    background, text = (page(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    light = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (background, text)]
    assert (light[0] > light[1]) == (scheme == "light")
    assert page.complaints == []


def test_texts_stay_texts(chromium: Any, upstream_service: Any) -> None:
    hostile = ScriptedServer(lambda _: ATTACK, chunks=lambda text: [text[:7], text[7:]])
    with hostile as server, upstream_service(server) as running:
        page = Inspector(chromium, running.url)
        page.choose("zero-shot")
        page.ask(ATTACK, n=1)
        assert page.all(".answer", "textContent") == [ATTACK]
        assert page.all("#rounds h2") == [ATTACK]
        page("document.querySelector('.bar .query').click()")
        assert ATTACK in page.all(".piece pre", "textContent")[0]
        assert page.all("#rounds img, #rounds script") == []
        assert page("document.title") != "taken"
        assert page.complaints == []


def test_errors_are_said_in_their_column(chromium: Any, upstream_service: Any) -> None:
    with ScriptedServer() as server, upstream_service(server) as running:
        page = Inspector(chromium, running.url)
        page.choose("zero-shot", "urial")
        page.set("max_tokens", 100_000)
        page.ask("hello", n=2)
        assert page.all("article [role=status].bad") == ["max_tokens is 100,000; at most 4,096 here"] * 2
        page.set("max_tokens", "")
        page.ask("hello", n=2)
        assert page.all("#rounds section:first-child .bad") == []


def test_a_key_is_asked_for(chromium: Any, upstream_service: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    with ScriptedServer() as server, upstream_service(server, settings=ServingSettings(api_keys=("k",))) as running:
        page = Inspector(chromium, running.url)
        page.wait(lambda: page("document.activeElement.id") == "key")
        assert page.all("#recipes input") == []
        page.keys("k", Keys.TAB)
        page.wait(lambda: bool(page.all("#recipes input")))
        page.choose("zero-shot")
        page.ask("hello", n=1)
        assert page.all("article .bad") == []
        assert [received.headers.get("authorization") for received in server.received if received.body] == [None]


def test_mounted_it_finds_its_service(chromium: Any, make_aligners: Any) -> None:
    from contextlib import asynccontextmanager

    from fastapi import FastAPI

    from ragalign.generation.upstream import Upstream
    from ragalign.serving import Limits, ServingSettings, create_app
    from ragalign.serving.server import make_config

    with ScriptedServer() as server:
        generator = Upstream([server.base_url], model="m", timeout_s=20, context_length=2048)
        settings = ServingSettings(limits=Limits(max_header_bytes=12_345))
        inner = create_app(make_aligners()["zero-shot"], generator=generator, name="tiny", settings=settings)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> Any:
            async with inner.router.lifespan_context(inner):
                yield

        outer = FastAPI(lifespan=lifespan)
        outer.get("/ready")(lambda: "yes")
        outer.mount("/align", inner)
        outermost = FastAPI()
        outermost.mount("/deep", outer)
        for app, n_bytes in ((inner, 12_345), (outer, 12_345), (outermost, 12_345), (FastAPI(), 32_768)):
            assert make_config(app).h11_max_incomplete_event_size == n_bytes
        with LiveApp(outer) as running:
            page = Inspector(chromium, f"{running.url}/align")
            page.ask("hello", n=1)
            assert page.all("article .bad") == []
