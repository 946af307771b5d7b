"""Pages from Jinja2 templates: plain text is always escaped; only `Markup` is not.

A package keeps its templates, styles and scripts in a folder ``assets`` of its own, beside those of the reports.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

REPORTS = "ragalign.reports"
N_COLOURS = 8
# What could end a script element or begin a comment, and the line ends that JavaScript once refused in strings.
_JSON_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render(template: str, *, package: str = REPORTS, **values: Any) -> Markup:
    """A template with values.

    Args:
        template: its file name, in the package's assets or in those of the reports.
        package: the package whose assets come first.
        values: what it shows; text that is not `Markup` is escaped.
    """
    return Markup(_environment(package).get_template(template).render(values))


def block(name: str, *values: Any) -> Markup:
    """One of the building blocks in ``markup.html``."""
    found: Markup = getattr(_environment(REPORTS).get_template("markup.html").module, name)(*values)
    return found


def asset(name: str, package: str = REPORTS) -> Markup:
    """A packaged style or script, which is ours and needs no escaping."""
    return Markup(resources.files(package).joinpath("assets", name).read_text(encoding="utf-8"))


def embed(value: Any) -> Markup:
    """JSON that is safe inside a script element and parses to the same value."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Lone surrogates have no UTF-8; JSON can spell them out.
    text = text.translate(_JSON_ESCAPES)
    return Markup(re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text))


def policy(script: str) -> Markup:
    """The content security policy of a page with one script: no connection, and nothing else runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Markup(
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def colour(place: int) -> str:
    """The class that gives the model at a place its colour."""
    return f"m{place % N_COLOURS}"


@lru_cache
def _environment(package: str) -> Environment:
    rooms = dict.fromkeys((package, REPORTS))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "assets") for package in rooms]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"colour": colour, "zip": zip}
    return environment
