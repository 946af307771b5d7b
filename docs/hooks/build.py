"""MkDocs hook: generated parts of pages, pages from elsewhere in the repository, and a check of what was built.

What is generated is described in `generate.py`. Files outside `docs/` that pages link to are copied into the site, so
that it works without a network.
"""

from __future__ import annotations

import logging
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import generate
from links import LINK, is_relative
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Pages of the site that are kept where readers of the repository look for them.
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/testbed/README.md": "testbed-model.md",
    "indexes/README.md": "index-format.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_COPIES = "repository"
_LOG = logging.getLogger("mkdocs.hooks.build")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from elsewhere, and every file outside `docs/` that a page links to."""
    linked: set[str] = set()
    pages = {page.relative_to(ROOT).as_posix() for page in DOCS.rglob("*.md")} | set(PAGES)
    for page in sorted(pages):
        for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = _target(page, target.partition("#")[0]) if is_relative(target) else ""
            if path and not path.startswith("docs/") and path not in PAGES and (ROOT / path).is_file():
                linked.add(path)
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for path in sorted(linked):
        files.append(File.generated(config, f"{_COPIES}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and turn links into the repository into links within the site."""
    uri = page.file.src_uri
    source = next((path for path, there in PAGES.items() if there == uri), f"docs/{uri}")
    markdown = generate.filled(markdown)

    def rewrite(found: re.Match[str]) -> str:
        path, mark, anchor = found[1].partition("#")
        if not path or not is_relative(path):
            return found[0]
        there = _target(source, path)
        new = there.removeprefix("docs/") if there.startswith("docs/") else PAGES.get(there, f"{_COPIES}/{there}")
        return f"]({os.path.relpath(new, Path(uri).parent)}{mark}{anchor})"

    return LINK.sub(rewrite, markdown)


def on_post_build(config: Any) -> None:
    """Refuse a site whose pages load anything from another host."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        loads = _Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        if loads.remote:
            raise PluginError(f"{page}: loads {loads.remote[0]} from the network")


class _Loads(HTMLParser):
    """Collects what a page loads from other hosts: scripts, styles, images and frames, not links to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.remote: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one tag."""
        values = dict(attrs)
        loads = values.get("src") if tag != "link" else values.get("href")
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev"):
            return
        if loads and loads.startswith(("http:", "https:", "//")):
            self.remote.append(loads)


def _target(page: str, link: str) -> str:
    """Where a relative link of a page leads, as a path from the repository's root."""
    return os.path.normpath(os.path.join(os.path.dirname(page), link))  # noqa: PTH118, PTH120
