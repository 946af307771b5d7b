"""Templates: rendering demonstrations and conversations as text that users cannot forge."""

from ragalign.templates.escaping import Escaper
from ragalign.templates.prompt_file import Constant, PromptFile
from ragalign.templates.template import Template, built_in

__all__ = ["Constant", "Escaper", "PromptFile", "Template", "built_in"]
