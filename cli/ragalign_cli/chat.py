"""`ragalign chat`: talk to an aligned base model in the terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Optional

import typer

from ragalign_cli import console, options, prompts


def chat(
    model: options.Model,
    index: options.Index = None,
    text: Annotated[
        Optional[str], typer.Argument(metavar="[QUESTION]", help="Ask only this question.", show_default=False)
    ] = None,
    question: options.Question = None,
    recipe: options.RecipeName = "ica",
    system: options.System = None,
    backend: options.Backend = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    json: Annotated[
        bool, typer.Option("--json", help="With a question: print the answer and its prompt as JSON.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Chat with a base model in the terminal.

    An empty line or Ctrl-D ends the conversation; /help lists the commands. Only recipes that retrieve need DIR.

    \b
    Examples:
      ragalign chat indexes/lima --model meta-llama/Llama-2-13b-hf
      ragalign chat indexes/lima "How do brain cells move?" \\
          --model ./llama-2-13b --json
      ragalign chat --recipe zero-shot --question "How do brain cells move?" \\
          --model ./llama-2-13b
    """
    from ragalign.aligner import Aligner
    from ragalign.errors import ConfigError
    from ragalign.recipes import Recipe
    from ragalign.types import Turn
    from ragalign_cli.conversation import Conversation, say

    console.be_quiet(quiet)
    asked = options.one_question(text, question)
    if json and asked is None:
        raise ConfigError("--json needs a question")
    chosen = Recipe.load(recipe)
    settings = options.decoding(
        chosen.decoding, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop
    )
    options.check_index(index, chosen, "chat")
    engine_options = options.engine(dtype, tensor_parallel, gpu_memory)
    options.check_model(model, backend, context_length, engine_options)
    with Aligner.from_recipe(
        replace(chosen, decoding=settings),
        index=index,
        model=model,
        backend=backend,
        tokenizer=tokenizer,
        context_length=context_length,
        **engine_options,
    ) as aligner:
        if asked is None:
            console.note("/help lists the commands; an empty line ends the conversation")
            Conversation(aligner, system).run()
            return
        turns = [*([Turn("system", system)] if system else []), Turn("user", asked)]
        if json:
            completion = aligner.chat(turns)
            answer = {"response": completion.text, "finish_reason": completion.finish_reason}
            counts = {"n_output_tokens": completion.n_output_tokens, "n_cached_tokens": completion.n_cached_tokens}
            prompt = prompts.prompt_record("0", completion.prompt, aligner.packer.context_length)
            console.print_json(answer | counts | {"prompt": prompt})
        else:
            say(aligner, turns)
