"""Utility: how much likelier a demonstration makes a good answer to a question.

`score_gains` measures it without a judge, as the log-likelihood of a reference answer.
"""

from ragalign.utility.files import Gain, GainFiles, Gains
from ragalign.utility.prompts import PromptForm
from ragalign.utility.questions import AnsweredQuestion, pool_questions, query_questions
from ragalign.utility.scoring import GainRun, ScoreOptions, score_gains
from ragalign.utility.trained import Trained, TrainOptions
from ragalign.utility.training import train_encoder

__all__ = [
    "AnsweredQuestion",
    "Gain",
    "GainFiles",
    "GainRun",
    "Gains",
    "PromptForm",
    "ScoreOptions",
    "TrainOptions",
    "Trained",
    "pool_questions",
    "query_questions",
    "score_gains",
    "train_encoder",
]
