"""A GGUF file is served as the folder with the same weights is."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fixtures.gguf_file import write_gguf
from fixtures.live import LiveCommand

from ragalign.models import CACHE_VARIABLE

N_NEW = 12


@pytest.mark.slow
def test_a_gguf_file_answers_as_its_weights_do_in_transformers(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file, cache = write_gguf(tiny_model, tmp_path / "tiny.gguf"), tmp_path / "cache"
    text = "# Query:\n```\nName three colours.\n```\n\n# Answer:\n```\n"
    arguments = ("--recipe", "zero-shot", "--model", file, "--name", "tiny", "--dtype", "float32")
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", CACHE_VARIABLE: str(cache)}
    with LiveCommand(tmp_path / "log", *arguments, environment=environment) as running:
        body = {"model": "tiny", "prompt": text, "max_tokens": N_NEW, "temperature": 0, "ignore_eos": True}
        raw = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
        assert raw.status_code == 200, raw.text
        question = {"model": "tiny", "messages": [{"role": "user", "content": "Name three colours."}]}
        chat = httpx.post(f"{running.url}/v1/chat/completions", json={**question, "max_tokens": 4}, timeout=60)
        assert chat.status_code == 200, chat.text

    # The file itself is read here by Transformers, not by us.
    loaded = {"gguf_file": file.name, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(file.parent, **loaded).eval()
    for weights in model.parameters():
        weights.data = weights.data.bfloat16().float()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer(text, return_tensors="pt").input_ids
    eos = model.generation_config.eos_token_id
    with torch.inference_mode():
        new = model.generate(ids, max_new_tokens=N_NEW, do_sample=False, eos_token_id=None, pad_token_id=eos)
    assert raw.json()["choices"][0]["text"] == tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
    assert len(list((cache / "models").glob("*/config.json"))) == 1
