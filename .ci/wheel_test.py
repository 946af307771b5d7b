"""Build the wheel, install it into an environment of its own, and index, search and pack with it there.

    python .ci/wheel_test.py        # or: make wheel-test

The environment gets ragalign from `dist/` alone. Everything that ragalign depends on comes from the environment that
runs this script, through a path file, so that nothing is downloaded. Path files are not read recursively, so the
editable install of ragalign there stays out of reach; the script checks that all the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
QUESTION = "How do I keep basil fresh?"
POOL = [
    ("basil", "How do I keep basil fresh in summer?", "Put the stems into water, like flowers, not into the fridge."),
    (
        "snow",
        "Write a haiku about snow.",
        "Quiet falls the snow / on roofs and on resting fields. / The night holds its breath.",
    ),
    ("prime", "What is a prime number?", "A whole number above 1 that only 1 and itself divide."),
    ("moons", "Name three moons of Jupiter.", "Io, Europa and Ganymede."),
]
LOCATE = """
import ragalign, ragalign_cli, sys
from importlib.metadata import distribution
from pathlib import Path
for module in (ragalign, ragalign_cli):
    print(Path(module.__file__).resolve())
print(Path(str(distribution("ragalign").locate_file(""))).resolve())
"""
PACKAGES = {"src/ragalign": "ragalign", "cli/ragalign_cli": "ragalign_cli"}


def main() -> None:
    """Run all steps; the first that fails ends the script with an error."""
    wheel = build()
    check_content(wheel)
    with tempfile.TemporaryDirectory(prefix="ragalign-wheel-") as folder:
        scratch = Path(folder)
        environment = scratch / "environment"
        packages = install(wheel, environment)
        check_origin(environment, packages, scratch)
        use(environment, scratch)
    print(f"{wheel.relative_to(ROOT)}: installs, indexes, searches and packs")


def build() -> Path:
    """Build the wheel into an empty `dist/`."""
    shutil.rmtree(DIST, ignore_errors=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    run([sys.executable, "-m", "pip", "wheel", *options, str(DIST), str(ROOT)])
    (wheel,) = DIST.glob("ragalign-*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    """The wheel holds exactly the committed files of both packages."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = run(["git", "-C", str(ROOT), "ls-files", *PACKAGES]).splitlines()
    expected = {
        package + name.removeprefix(folder)
        for name in tracked
        for folder, package in PACKAGES.items()
        if name.startswith(f"{folder}/")
    }
    if packed != expected:
        sys.exit(
            f"{wheel.name}: missing {sorted(expected - packed)[:5]}, not committed {sorted(packed - expected)[:5]}"
        )


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel into a new environment, then let it see the dependencies; returns its site-packages."""
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)])
    packages = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return packages


def check_origin(environment: Path, packages: Path, scratch: Path) -> None:
    """Both packages and the metadata come from the wheel."""
    found = run([str(environment / "bin" / "python"), "-I", "-c", LOCATE], scratch).split()
    if strays := [path for path in found if not Path(path).is_relative_to(packages.resolve())]:
        sys.exit(f"ragalign does not come from the wheel but from {strays[0]}")


def use(environment: Path, scratch: Path) -> None:
    """Index, search and pack with the installed command."""
    ragalign = str(environment / "bin" / "ragalign")
    pool, index = scratch / "pool.jsonl", str(scratch / "index")
    rows = [json.dumps(dict(zip(("id", "instruction", "response"), row, strict=True))) for row in POOL]
    pool.write_text("\n".join(rows) + "\n", encoding="utf-8")
    run([ragalign, "index", "--pool", str(pool), "--out", index, "--no-cache"], scratch)
    hits = json.loads(run([ragalign, "search", index, QUESTION, "-k", "2", "--json"], scratch))
    if hits["hits"][0]["source_id"] != "basil":
        sys.exit(f"search: the nearest demonstration is not the one about basil: {hits}")
    tokenizer = str(next(environment.glob("lib/*/site-packages/ragalign/data/testbed/model")))
    packed = json.loads(run([ragalign, "pack", index, QUESTION, "--tokenizer", tokenizer, "--json"], scratch))
    if QUESTION not in packed["text"] or len(packed["demonstrations"]) != len(POOL):
        sys.exit(f"pack: the prompt lacks the question or a demonstration: {packed}")


def run(command: list[str], folder: Path = ROOT) -> str:
    """The standard output of a command, without this repository on its path; ends the script if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
