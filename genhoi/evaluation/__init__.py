"""Edited clips measured against their ground truth."""

from genhoi.evaluation.case import Case
from genhoi.evaluation.measure import CaseResult, Evaluation, evaluate

__all__ = ["Case", "CaseResult", "Evaluation", "evaluate"]
