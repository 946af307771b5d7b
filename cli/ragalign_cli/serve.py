"""`ragalign serve`: serve a base model as an OpenAI-compatible chat API."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from ragalign_cli import console, options

if TYPE_CHECKING:
    from ragalign.recipes import Recipe

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    context: typer.Context,
    index: Annotated[
        Optional[Path], typer.Argument(metavar="[DIR]", help="The index folder; only recipes that retrieve need it.")
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Folder, GGUF file or hub id of a base model; with --upstream, the model's name on that server.",
            show_default=False,
        ),
    ] = None,
    upstream: Annotated[
        Optional[list[str]],
        typer.Option(help="URL of a completion server to use instead of an engine in this process. Repeatable."),
    ] = None,
    affinity: Annotated[
        Optional[Literal["prefix", "none"]],
        typer.Option(
            help="Which --upstream gets a request: prefix sends requests that begin alike to the same server, "
            "unless it has over 4 more of this service's answers than the least busy one; none always picks the "
            "least busy one. By default prefix.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="The default recipe, used for the plain model name.")] = "ica",
    also: Annotated[
        Optional[list[str]],
        typer.Option(help="Another recipe to serve. Repeatable; by default the packaged recipes."),
    ] = None,
    name: Annotated[Optional[str], typer.Option(help="The model's name in the API.", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free port.")] = 8000,
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    store: Annotated[
        Optional[Path],
        typer.Option(help="Folder of stored keys and values; by default DIR.kv/RECIPE-MODEL.", show_default=False),
    ] = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    api_keys: Annotated[
        Optional[Path],
        typer.Option(help="File of API keys, one per line; or set RAGALIGN_API_KEYS.", show_default=False),
    ] = None,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="Serve /metrics without a key.")] = False,
    open_schema: Annotated[bool, typer.Option("--open-schema", help="Serve /openapi.json without a key.")] = False,
    allowed_host: Annotated[
        Optional[list[str]],
        typer.Option(help="Host name that clients can use, such as *.example.org. Repeatable."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens that a request can ask for.")] = 4096,
    max_prompt_tokens: Annotated[
        Optional[int], typer.Option(help="Maximum tokens of a packed prompt; by default the context length.")
    ] = None,
    max_running: Annotated[int, typer.Option(help="Maximum concurrent requests.")] = 64,
    max_waiting: Annotated[int, typer.Option(help="Maximum queued requests; further ones get status 429.")] = 256,
    rate_limit: Annotated[
        Optional[int],
        typer.Option(
            help="Maximum requests per minute for each API key, or each client address without keys.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds before a request is cancelled.")] = 600.0,
    drain: Annotated[float, typer.Option(help="Seconds that a shutdown waits for running requests.")] = 60.0,
    drain_delay: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to keep answering new requests after SIGTERM, with /ready false, so that a load balancer "
            "can notice.",
        ),
    ] = 0.0,
    cors: Annotated[
        Optional[list[str]],
        typer.Option(help="Origin whose pages can use the API, such as https://example.org. Repeatable."),
    ] = None,
    log_prompts: Annotated[bool, typer.Option(help="Log conversations and answers.")] = False,
    access_log: Annotated[bool, typer.Option(help="Log every request's path and status.")] = False,
) -> None:
    """Serve a base model as an OpenAI-compatible chat API, with an inspector page at /.

    Clients select a recipe by the model's name: NAME for the default, NAME:urial for another. POST /admin/reload
    or SIGHUP reloads the index.

    Without API keys, requests to a loopback address must name localhost as their host, or an --allowed-host.

    \b
    Examples:
      ragalign serve indexes/mine --model meta-llama/Llama-3.1-8B
      ragalign serve indexes/mine --upstream http://gpu1:8000 \\
          --upstream http://gpu2:8000
    """
    from ragalign.serving.server import bind, remembered_hangups, run

    hangups = context.with_resource(remembered_hangups())
    from ragalign.errors import ConfigError
    from ragalign.models import locate_model
    from ragalign.serving import Limits, ServingSettings, create_app
    from ragalign.serving.loading import Loader
    from ragalign.serving.settings import read_admin_key, read_api_keys, read_upstream_key

    if model is None and not upstream:
        raise ConfigError("give --model for an engine in this process, or --upstream for a server")
    if affinity and not upstream:
        raise ConfigError("--affinity only applies to --upstream servers: add --upstream, or leave out --affinity")
    settings = ServingSettings(
        limits=Limits(
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            max_running=max_running,
            max_waiting=max_waiting,
            requests_per_minute=rate_limit,
            timeout_s=timeout,
        ),
        api_keys=read_api_keys(api_keys),
        admin_key=read_admin_key(),
        open_metrics=open_metrics,
        open_schema=open_schema,
        allowed_hosts=tuple(allowed_host or ()),
        cors_origins=tuple(cors or ()),
        log_prompts=log_prompts,
    )
    if host not in _LOOPBACK and not settings.api_keys:
        console.warning(f"listening on {host} without API keys: anyone who can connect can use it")
    upstream_key = read_upstream_key()
    engine_options = options.engine(dtype, tensor_parallel, gpu_memory)
    if upstream and engine_options:
        raise ConfigError(
            "--dtype, --tensor-parallel and --gpu-memory are for an engine of this process, not --upstream"
        )
    if model is not None and not upstream:
        options.check_model(model, "vllm", context_length, engine_options)
    opened = _open_index(index)
    recipes = _recipes(recipe, also, opened)
    store = _store(store, index, recipes, model, None if upstream else engine_options)
    loader = Loader(index, opened, recipes, store)
    if not upstream:
        # Located as a model, so that a GGUF file's weights and tokenizer are read in one pass.
        loader.load_tokenizer(tokenizer or locate_model(model or ""))
        loader.check(context_length)
    listener = bind(host, port)
    generator: Any
    if upstream:
        from ragalign.generation.upstream import Upstream

        generator = Upstream(
            upstream,
            model=model,
            api_key=upstream_key,
            timeout_s=timeout,
            context_length=context_length,
            affinity=affinity or "prefix",
        )
    else:
        from ragalign.generation.vllm_async import AsyncVllmGenerator

        console.note(f"starting the engine for {model} ...")
        generator = AsyncVllmGenerator(
            model or "",
            tokenizer=tokenizer,
            max_model_len=context_length,
            kv_transfer_config=_connector(store, recipes),
            **engine_options,
        )
    try:
        if upstream:
            loader.load_tokenizer(tokenizer or generator.root)
        loader.context_length = generator.context_length
        aligners = loader()
        default = next(iter(aligners))
        app = create_app(
            aligners[default], recipes=aligners, generator=generator, name=name, settings=settings, load=loader
        )
    except BaseException:
        _stop(generator)
        raise
    _log_to_stderr()
    address = listener.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    catalog = app.state.service.catalog
    console.note(f"serving {', '.join(catalog.models)}")
    console.note(f"http://{shown}:{address[1]}/ shows what the model sees; http://{shown}:{address[1]}/v1 is the API")
    run(app, listener, drain_s=drain, delay_s=drain_delay, access_log=access_log, hangups=hangups)


def _open_index(folder: Path | None) -> Any:
    """Open the index, so that its faults show before the engine starts."""
    from ragalign.indexes import open_index

    return None if folder is None else open_index(folder)


def _recipes(default: str, also: list[str] | None, index: Any) -> dict[str, Recipe]:
    """The recipes to serve, by name; without `also`, all packaged recipes that can be served."""
    from ragalign.errors import ConfigError
    from ragalign.recipes import Recipe, packaged_recipes
    from ragalign.retrieval import make_retriever, retriever_names

    available = ("none", *(() if index is None else retriever_names(index)))
    first = Recipe.load(default)
    found = {first.name: first}
    for name in packaged_recipes() if also is None else also:
        recipe = Recipe.load(name)
        if recipe.name in found:
            continue
        if also is None and (recipe.retriever.name not in available or recipe.reuse.enabled):
            continue  # recipes added by default must not require another index or stored keys and values
        found[recipe.name] = recipe
    for recipe in found.values():
        if recipe.retriever.name == "none":
            continue
        if index is None:
            raise ConfigError(f"the recipe {recipe.name!r} retrieves demonstrations: give the folder of an index")
        make_retriever(recipe.retriever.name, index, **recipe.retriever.options)
    return found


def _store(
    given: Path | None,
    index: Path | None,
    recipes: Mapping[str, Recipe],
    model: str | None,
    engine_options: dict[str, Any] | None,
) -> Path | None:
    """The store of the recipe with reuse, checked for an engine with these options (None for an upstream server).

    Returns None if no recipe reuses keys and values.
    """
    from ragalign.errors import ConfigError
    from ragalign.reuse.opening import check_model, check_same_model, default_store
    from ragalign.reuse.store import Store

    reusing = [recipe for recipe in recipes.values() if recipe.reuse.enabled]
    if not reusing:
        if given is not None:
            raise ConfigError("--store is for recipes with [reuse]: serve one, such as --recipe reuse, or leave it out")
        return None
    if len(reusing) > 1:
        names = " and ".join(recipe.name for recipe in reusing)
        raise ConfigError(f"an engine can reuse the keys and values of one recipe only: serve one of {names}")
    [recipe] = reusing
    folder = given or (recipe.path(recipe.reuse.store) if recipe.reuse.store else None)
    if folder is None and index is not None and model is not None:
        folder = default_store(index, recipe.name, model)
    if folder is None:
        raise ConfigError(f"the recipe {recipe.name!r} reuses keys and values: give their folder with --store")
    store = Store(folder)
    if engine_options is not None and model is not None:
        check_model(model, None, engine_options)
        check_same_model(store, model, engine_options.get("dtype"))
    return folder


def _connector(store: Path | None, recipes: Mapping[str, Recipe]) -> dict[str, Any] | None:
    """The engine's KV connector for reuse; None if no recipe reuses keys and values."""
    from ragalign.reuse.opening import engine_config
    from ragalign.reuse.store import Store

    if store is None:
        return None
    [settings] = [recipe.reuse for recipe in recipes.values() if recipe.reuse.enabled]
    return engine_config(Store(store), settings)


def _stop(generator: Any) -> None:
    import asyncio

    asyncio.run(generator.close())


def _log_to_stderr() -> None:
    import logging
    import sys

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # uvicorn warns of each request that is not HTTP, so any client could fill the log.
    for name, level in (("ragalign.serving", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
    access = logging.getLogger("uvicorn.access")
    access.addHandler(handler)
    access.setLevel(logging.INFO)
