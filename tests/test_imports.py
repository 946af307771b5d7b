"""What importing costs, and what the package promises to hold."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter

import grimp

import ragalign

HEAVY = (
    "faiss",
    "torch",
    "sentence_transformers",
    "transformers",
    "vllm",
    "datasets",
    "openai",
    "fastapi",
    "ray",
    "trl",
    "peft",
)


def loaded_by(*command: str) -> set[str]:
    """The heavy packages in sys.modules after running Python with `command`, in a process of its own."""
    report = (
        f"import sys, atexit; atexit.register(lambda: print('loaded', *[m for m in {HEAVY!r} if m in sys.modules]))"
    )
    code = f"{report}\n{command[0]}"
    done = subprocess.run([sys.executable, "-c", code, *command[1:]], capture_output=True, text=True, check=False)
    last = [line for line in done.stdout.splitlines() if line.startswith("loaded")]
    assert last, done.stderr
    return set(last[-1].split()[1:])


def test_importing_ragalign_loads_nothing_heavy() -> None:
    assert loaded_by("import ragalign") == set()


def test_the_helper_sees_what_is_loaded() -> None:
    assert "openai" in loaded_by("import openai")


def test_help_loads_nothing_heavy() -> None:
    main = "from ragalign_cli.main import main; main()"
    for arguments in (
        ["--help"],
        ["index", "--help"],
        ["pack", "--help"],
        ["judge", "--help"],
        ["generate", "--help"],
        ["analyze", "shift", "--help"],
        ["compare-ift", "--help"],
    ):
        assert loaded_by(main, *arguments) == set(), arguments


def test_nothing_of_ray_is_loaded_without_it() -> None:
    """The aligner and the commands name the executors, but import them only with --ray."""
    code = """
import ragalign.aligner, ragalign.generation, ragalign.indexes
from ragalign_cli.main import main
main()"""
    assert "ray" not in loaded_by(code, "index", "--pool", "none.jsonl", "--out", "none")
    assert "ray" not in loaded_by(
        code, "generate", "--recipe", "urial", "--model", "none", "--queries", "none", "--out", "a"
    )
    assert "ray" not in loaded_by("import ragalign.executors")


def test_every_public_name_is_there() -> None:
    for name in ragalign.__all__:
        assert getattr(ragalign, name).__name__ == name


def test_public_names_are_listed_once_and_sorted() -> None:
    assert ragalign.__all__ == sorted(set(ragalign.__all__))


def test_no_file_imports_itself_through_others() -> None:
    """Imports inside functions and for type checkers count, too; import-linter looks at rooms only."""
    graph = grimp.build_graph("ragalign", "ragalign_cli", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert imports["ragalign.reuse.recording"] >= {"ragalign.reuse.page_locked"}, "imports in functions are seen"
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the files
