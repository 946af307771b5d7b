"""`ragalign kv`: what can be checked is checked before an engine starts, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fixtures.command import Command

from ragalign.reuse.pieces import Piece, piece_name
from ragalign.reuse.store import Manifest, Store

BLOOM = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_layer": 2, "hidden_size": 32, "n_head": 2}


def filled(folder: Path) -> Store:
    store = Store.create(folder, Manifest((1, 2), "template", "tokenizer"))
    store.write(piece_name([3, 4]), Piece(torch.ones(2, 1, 2, 1, 4)))
    return store


def test_info_and_verify_find_the_stores_beside_an_index(tmp_path: Path, ragalign: Command) -> None:
    store = filled(tmp_path / "idx.kv" / "reuse-model")
    done = ragalign("kv", "info", str(tmp_path / "idx"), "--json")
    told = json.loads(done.stdout)
    assert (told["n_pieces"], told["n_prefix_tokens"], told["key"]) == (1, 2, store.key)
    assert ragalign("kv", "verify", str(tmp_path / "idx")).returncode == 0
    path = store.path(piece_name([3, 4]))
    path.write_bytes(path.read_bytes()[:-1])
    done = ragalign("kv", "verify", str(store.folder), "--json")
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["faults"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["info", "nothing"], 1, "no store of keys and values"),
        (["build", "nothing", "--model", "bloom"], 2, "ALiBi"),
        (["build", "nothing", "--model", "bloom", "--backend", "transformers"], 2, "vllm"),
        (["check", "nothing", "--model", "bloom", "--queries", "q.jsonl"], 1, "reference"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, ragalign: Command, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "bloom").mkdir()
    (tmp_path / "bloom" / "config.json").write_text(json.dumps(BLOOM))
    (tmp_path / "q.jsonl").write_text('{"id": "1", "instruction": "Why?"}\n')
    given = [str(tmp_path / one) if one in ("nothing", "bloom", "q.jsonl") else one for one in arguments]
    done = ragalign("kv", *given)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
