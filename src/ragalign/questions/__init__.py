"""Reading the question from a row: for pools, query files, prompt sets and judged answers alike."""

from ragalign.questions.conversations import ConversationShape, read_conversation
from ragalign.questions.question import (
    ANSWER_FIELDS,
    CONVERSATION_FIELDS,
    QUESTION_FIELDS,
    Question,
    flat_question,
    joined,
    read_question,
    system_field,
)
from ragalign.questions.rows import BadRowError, field_names, is_empty, is_filled, kind, missing, text_of

__all__ = [
    "ANSWER_FIELDS",
    "CONVERSATION_FIELDS",
    "QUESTION_FIELDS",
    "BadRowError",
    "ConversationShape",
    "Question",
    "field_names",
    "flat_question",
    "is_empty",
    "is_filled",
    "joined",
    "kind",
    "missing",
    "read_conversation",
    "read_question",
    "system_field",
    "text_of",
]
