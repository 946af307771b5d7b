"""Judging: protocols of the published evaluations, their file formats, and running judges.

`make_protocol` builds a protocol, `load_items` joins answer files into items, and `replay` reads recorded judgements.
`ragalign.judging.runner` asks judges.
"""

from ragalign.judging.answer_files import write_answers
from ragalign.judging.answers import load_items
from ragalign.judging.base import Figures, Protocol, Verdict
from ragalign.judging.registry import PROTOCOLS, make_protocol
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item

__all__ = [
    "PROTOCOLS",
    "Answer",
    "Figures",
    "Item",
    "Protocol",
    "Verdict",
    "load_items",
    "make_protocol",
    "replay",
    "write_answers",
]
