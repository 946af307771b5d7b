"""Templates: how demonstrations and conversation turns become text, and how that text cannot be forged."""

from ragalign.templates.escaping import Escaper
from ragalign.templates.prompt_file import Constant, PromptFile
from ragalign.templates.template import Template, built_in

__all__ = ["Constant", "Escaper", "PromptFile", "Template", "built_in"]
