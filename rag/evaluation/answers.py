"""How good answers are: what they say, what they cite, and when they abstain.

A figure is a mean over the answers that have it, each counted once. Citations follow ALCE (Gao et
al. 2023, "Enabling Large Language Models to Generate Text with Citations"), with two differences:
whether a passage supports a sentence is judged by `rag.support` instead of an entailment model, and
by one passage at a time, where ALCE lets the cited passages support a sentence together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rag.evaluation.gold import contains_gold, token_f1
from rag.evaluation.questions import Question
from rag.types import Answer, Citation, Statement

if TYPE_CHECKING:
    from rag.evaluation.judge import Verdict

FIGURES = {
    "contains_gold": "answerable questions whose answer holds a gold answer, abstentions included",
    "contains_gold_answered": "the same, among those that were answered",
    "token_f1": "F1 with the best gold answer, answerable questions; 0 for an abstention",
    "citation_precision": "of what an answer cites, sentence by sentence: how much supports it",
    "citation_recall": "of an answer's sentences: those that a passage supports which they cite",
    "quoted_sentences": "of an answer's sentences: those that a passage they cite holds verbatim",
    "supported_sentences": "of an answer's sentences: those that any passage supports",
    "citation_document_precision": "of the documents that an answer cites: those judged relevant",
    "citation_document_hit_rate": "judged questions whose answer cites a relevant document",
    "abstention_accuracy": "questions answered if they can be, and only then",
    "evidence_auc": "how often the evidence for an answerable question is above an unanswerable's",
    "judged_correct": "answers that the judge finds to agree with the gold answers",
    "judged_grounded": "answers that the judge finds in the passages they cite",
}
"""Every figure of which more is better, and what its mean is over."""

ERRORS = {
    "false_answers": "unanswerable questions that were answered",
    "false_refusals": "answerable questions that were not",
}
"""The figures of which less is better."""

_MARKER = re.compile(r"\[\d{1,3}\]")


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer and its figures; those that it cannot have are left out."""

    question: Question
    answer: Answer
    figures: dict[str, float]
    verdict: Verdict | None = None

    def to_json(self) -> dict[str, Any]:
        """As a line of `rag eval --answers --out`."""
        judged = {"verdict": asdict(self.verdict)} if self.verdict else {}
        golds = list(self.question.answers)
        row = {"_id": self.question.id, **self.answer.to_json()}
        return row | {"gold_answers": golds, "figures": self.figures} | judged


def scored(
    question: Question,
    answer: Answer,
    relevant: AbstractSet[str] = frozenset(),
    document: Callable[[Citation], str] = lambda citation: citation.document_id,
    verdict: Verdict | None = None,
) -> Scored:
    """The figures of one answer. `relevant` are the documents judged so, as `document` names them.

    The text has figures where there are gold answers and the question is not said to be
    unanswerable; citations have them where the question was answered.
    """
    figures: dict[str, float] = {}
    if question.answers and question.answerable:
        contains = contains_gold(answer.text, question.answers)
        figures["contains_gold"] = float(contains and not answer.abstained)
        figures["token_f1"] = 0.0 if answer.abstained else token_f1(answer.text, question.answers)
        if not answer.abstained:
            figures["contains_gold_answered"] = float(contains)
    if question.answerable is not None:
        figures["abstention_accuracy"] = float(question.answerable != answer.abstained)
        error = "false_refusals" if question.answerable else "false_answers"
        figures[error] = float(question.answerable == answer.abstained)
    if not answer.abstained:
        figures |= _citations(answer)
        cited = {document(citation) for citation in answer.citations}
        if relevant:
            figures["citation_document_hit_rate"] = float(bool(cited & relevant))
        if relevant and cited:
            figures["citation_document_precision"] = len(cited & relevant) / len(cited)
    if verdict:
        figures |= verdict.figures()
    return Scored(question, answer, figures, verdict)


def _citations(answer: Answer) -> dict[str, float]:
    """The figures of an answer's citations, by its sentences; none for a text without sentences."""
    statements = answer.statements
    if not statements:
        return {}
    passages = {citation.marker: citation for citation in answer.citations}
    cites = _markers(answer.text, statements)
    pairs = [(s, own, n) for s, own in zip(statements, cites, strict=True) for n in own]
    right = [
        # Of several passages cited for a sentence, those count too that support a part of it.
        n == s.marker or (s.marker in own and bool(passages[n].spans))
        for s, own, n in pairs
        if n in passages
    ]
    quoted = [
        _quoted(answer.text[s.start : s.end], [passages[n] for n in own if n in passages])
        for s, own in zip(statements, cites, strict=True)
    ]
    own_support = [s.marker in own for s, own in zip(statements, cites, strict=True)]
    return {
        **({"citation_precision": sum(right) / len(pairs)} if pairs else {}),
        "citation_recall": sum(own_support) / len(statements),
        "quoted_sentences": sum(quoted) / len(statements),
        "supported_sentences": sum(s.supported for s in statements) / len(statements),
    }


def _markers(text: str, statements: Sequence[Statement]) -> list[list[int]]:
    """The markers in each sentence and after it, up to the next one."""
    bounds = [0, *(s.start for s in statements[1:]), len(text)]
    return [
        list(dict.fromkeys(int(found[1:-1]) for found in _MARKER.findall(text[start:end])))
        for start, end in pairwise(bounds)
    ]


def _quoted(sentence: str, cited: Sequence[Citation]) -> bool:
    """Whether passages hold a sentence word for word, each part of it between markers at least."""
    held = [" ".join(citation.text.split()) for citation in cited]
    parts = [" ".join(part.split()) for part in _MARKER.split(sentence)]
    return all(any(part in text for text in held) for part in parts if part)
