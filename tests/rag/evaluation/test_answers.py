"""The figures of answers, against examples worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import InputError
from rag.evaluation.answers import ERRORS, FIGURES, Scored, scored
from rag.evaluation.gold import contains_gold, token_f1
from rag.evaluation.judge import Verdict
from rag.evaluation.questions import Question, read
from rag.evaluation.summary import summary
from rag.types import Answer, Citation, Statement, Turn, Usage

WORDS = st.lists(st.sampled_from("tide moon Paris 1,000 仓库 the U.S. x".split()), max_size=8)


# --- text against gold


@pytest.mark.parametrize(
    ("text", "gold", "holds"),
    [
        ("Kawann Short led the team in sacks. [1]", "Kawann Short", True),
        ("It was Short's eleventh sack [2].", "Short", True),
        ("They met in the US.", "U.S.", True),
        ("THE Eiffel Tower", "an Eiffel tower!", True),
        ("1,308 people", "1308", True),
        ("1,308 people", "308", False),
        ("The score was 24–10.", "24", True),
        ("ﬁve ｃats", "five cats", True),
        ("Ten sacks. [5]", "5", False),  # a marker is no word of the answer
        ("It costs 13.5 pounds", "13", False),
        ("It costs 13.5 pounds", "135", False),
        ("Parisian food", "Paris", False),
        ("a sack, eleven", "eleven sack", False),
        ("仓库早上七点开门 [1]。", "七点", True),
        ("共擒杀136次。", "136 次", True),
        ("2016年", "16", False),
        ("《战国无双3》由光荣开发", "战国无双 3", True),
        ("anything", "…", False),
    ],
)
def test_contains_gold(text: str, gold: str, holds: bool) -> None:
    assert contains_gold(text, [gold]) is holds
    assert contains_gold(text, ["no such thing", gold]) is holds
    assert not contains_gold(text, [])


@pytest.mark.parametrize(
    ("text", "golds", "f1"),
    [
        ("The cat sat. [1]", ["a cat sat"], 1.0),
        ("the cat sat down", ["cat"], 2 / 4),  # 3 tokens and 1, of which 1 is shared
        ("cat cat", ["cat"], 2 / 3),  # a word counts as often as it stands in both
        ("dog", ["cat"], 0.0),
        ("cat", ["dog", "cat"], 1.0),
        ("七点开门", ["七点"], 4 / 6),
        ("", ["cat"], 0.0),
        ("cat", [], 0.0),
    ],
)
def test_token_f1(text: str, golds: list[str], f1: float) -> None:
    assert token_f1(text, golds) == pytest.approx(f1)


@given(WORDS, WORDS)
def test_f1_is_symmetric_between_0_and_1(some: list[str], others: list[str]) -> None:
    one, other = " ".join(some), " ".join(others)
    assert token_f1(one, [other]) == pytest.approx(token_f1(other, [one]))
    assert 0 <= token_f1(one, [other]) <= 1


@given(WORDS, WORDS, WORDS)
def test_what_stands_in_a_text_is_contained_and_shared(
    before: list[str], gold: list[str], after: list[str]
) -> None:
    text, wanted = " ".join([*before, *gold, *after]), " ".join(gold)
    if any(word != "the" for word in gold):
        assert contains_gold(text, [wanted])
        assert token_f1(text, [wanted]) > 0


@given(WORDS, WORDS)
def test_markers_change_nothing(some: list[str], gold: list[str]) -> None:
    plain, marked = " ".join(some), "".join(f"{word} [3] " for word in some)
    golds = [" ".join(gold)]
    assert contains_gold(plain, golds) == contains_gold(marked, golds)
    assert token_f1(plain, golds) == token_f1(marked, golds)


# --- one answer


def passage(marker: int, text: str, *spans: tuple[int, int]) -> Citation:
    return Citation(marker, f"c{marker}", f"d{marker}", f"/{marker}", "", None, 1.0, text, spans)


TEXT = "Doors open at seven [1]. Parking is free [1][2]. There is a canteen."
FIRST, SECOND, THIRD = (0, 24), (25, 48), (49, 68)
ANSWER = Answer(
    "When?",
    TEXT,
    (
        passage(1, "Doors open at seven. They close at nine.", (0, 20)),
        passage(2, "Visitors park for nothing.", (0, 26)),
    ),
    abstained=False,
    model="m",
    statements=(
        Statement(*FIRST, marker=1, span=(0, 20), score=0.9),
        Statement(*SECOND, marker=2, span=(0, 26), score=0.7),
        Statement(*THIRD),
    ),
    evidence=0.8,
)
REFUSED = Answer("When?", "The documents do not say.", (), abstained=True, model="m", evidence=0.2)


def figures(answer: Answer, **question: Any) -> dict[str, float]:
    return scored(Question("q", "When?", **question), answer).figures


def test_the_sentences_are_those_of_the_example() -> None:
    assert TEXT[slice(*FIRST)] == "Doors open at seven [1]."
    assert TEXT[slice(*SECOND)] == "Parking is free [1][2]."
    assert TEXT[slice(*THIRD)] == "There is a canteen."


def test_citations_are_measured_by_sentence() -> None:
    found = figures(ANSWER)
    # [1], [1] and [2]; the second [1] stands beside the one that supports, and supports something.
    assert found["citation_precision"] == 1.0
    assert found["citation_recall"] == pytest.approx(2 / 3)
    assert found["supported_sentences"] == pytest.approx(2 / 3)
    assert found["quoted_sentences"] == pytest.approx(1 / 3)  # the first, around its marker


def test_a_passage_that_supports_nothing_is_cited_wrongly() -> None:
    first, second = ANSWER.citations
    unsupporting = replace(ANSWER, citations=(replace(first, spans=()), second))
    assert figures(unsupporting)["citation_precision"] == pytest.approx(2 / 3)


def test_support_by_a_passage_that_is_not_cited_is_no_citation() -> None:
    by_third = replace(ANSWER.statements[1], marker=3)
    found = figures(replace(ANSWER, statements=(ANSWER.statements[0], by_third)))
    assert found["supported_sentences"] == 1.0
    assert found["citation_recall"] == 0.5
    assert found["citation_precision"] == pytest.approx(1 / 3)


def test_quotes_are_looked_for_in_the_passages_that_are_cited() -> None:
    text = "Doors open at seven. [1] They close\n at nine. [2]"
    quotes = Answer(
        "When?",
        text,
        ANSWER.citations,
        abstained=False,
        model="m",
        statements=(Statement(0, 20), Statement(25, 44)),
    )
    assert figures(quotes)["quoted_sentences"] == 0.5
    in_first = replace(quotes, text=text.replace("[2]", "[1]"))
    assert figures(in_first)["quoted_sentences"] == 1.0


def test_markers_before_the_first_sentence_and_after_the_last_belong_to_them() -> None:
    said = "[2] Doors open at seven. Parking is free. [1]"
    answer = replace(
        ANSWER, text=said, statements=(Statement(4, 24, 2, (0, 5)), Statement(25, 41, 1, (0, 5)))
    )
    assert figures(answer)["citation_recall"] == 1.0


def test_documents_cited_are_compared_with_the_judgements() -> None:
    question = Question("q", "When?")
    found = scored(question, ANSWER, {"d2", "d9"}).figures
    assert found["citation_document_precision"] == 0.5
    assert found["citation_document_hit_rate"] == 1.0
    by_source = scored(question, ANSWER, {"d2"}, lambda citation: citation.source).figures
    assert by_source["citation_document_hit_rate"] == 0.0
    assert "citation_document_hit_rate" not in scored(question, ANSWER).figures
    uncited = scored(question, replace(ANSWER, citations=(), statements=()), {"d2"}).figures
    assert uncited["citation_document_hit_rate"] == 0.0
    assert "citation_document_precision" not in uncited
    assert "citation_document_hit_rate" not in scored(question, REFUSED, {"d2"}).figures


@pytest.mark.parametrize(
    ("answerable", "answer", "right", "error"),
    [
        (True, ANSWER, 1.0, {"false_refusals": 0.0}),
        (True, REFUSED, 0.0, {"false_refusals": 1.0}),
        (False, ANSWER, 0.0, {"false_answers": 1.0}),
        (False, REFUSED, 1.0, {"false_answers": 0.0}),
    ],
)
def test_abstaining_is_right_only_where_there_is_no_answer(
    answerable: bool, answer: Answer, right: float, error: dict[str, float]
) -> None:
    found = figures(answer, answerable=answerable)
    assert found["abstention_accuracy"] == right
    assert {name: found[name] for name in ERRORS if name in found} == error


def test_what_nobody_said_has_no_figure() -> None:
    assert figures(REFUSED) == {}
    assert not {"contains_gold", "token_f1", "abstention_accuracy"} & figures(ANSWER).keys()


def test_an_abstention_holds_no_gold_whatever_its_words() -> None:
    found = figures(REFUSED, answers=("documents",), answerable=True)
    assert (found["contains_gold"], found["token_f1"]) == (0.0, 0.0)
    assert "contains_gold_answered" not in found
    unanswerable = figures(ANSWER, answers=("seven",), answerable=False)
    assert "contains_gold" not in unanswerable


# --- many answers


def rows() -> list[Scored]:
    def row(n: int, answer: Answer, answerable: bool | None, evidence: float) -> Scored:
        golds = ("seven",) if answerable else ()
        question = Question(f"q{n}", "When?", golds, answerable)
        return scored(question, replace(answer, evidence=evidence))

    return [
        row(1, ANSWER, True, 0.9),
        row(2, replace(ANSWER, text="No."), True, 0.4),
        row(3, REFUSED, True, 0.2),
        row(4, REFUSED, False, 0.1),
        row(5, ANSWER, False, 0.4),
        row(6, ANSWER, None, 0.9),
    ]


def test_figures_are_means_over_the_answers_that_have_them() -> None:
    done = summary("set", rows(), seconds=1.0)
    assert done.metrics["contains_gold"] == pytest.approx(1 / 3)
    assert done.metrics["contains_gold_answered"] == pytest.approx(1 / 2)
    assert done.metrics["false_refusals"] == pytest.approx(1 / 3)
    assert done.metrics["false_answers"] == pytest.approx(1 / 2)
    assert done.metrics["abstention_accuracy"] == pytest.approx(3 / 5)
    # 0.9, 0.4, 0.2 against 0.1, 0.4: above in 2 + 1 + 1 of 6 pairs, and one tie
    assert done.metrics["evidence_auc"] == pytest.approx(4.5 / 6)
    assert done.metrics.keys() <= FIGURES.keys() | ERRORS.keys()
    assert {name: done.counts[name] for name in ("questions", "answerable", "unanswerable")} == {
        "questions": 6,
        "answerable": 3,
        "unanswerable": 2,
    }
    assert (done.counts["false_answers"], done.counts["false_refusals"]) == (1, 1)
    assert (done.counts["answered"], done.counts["abstained"]) == (4, 2)
    assert any("not said to be answerable or not" in remark for remark in done.remarks)


def test_missing_gold_answers_are_told_and_left_out() -> None:
    done = summary("set", [scored(Question("q", "When?", (), True), ANSWER)], seconds=1.0)
    assert "contains_gold" not in done.metrics
    assert "evidence_auc" not in done.metrics
    assert done.remarks == (
        "answerable questions without gold answers (their texts are not measured): 1",
    )


def timed(first: float, tokens: int, generate: float, **more: Any) -> Scored:
    answer = replace(
        ANSWER,
        timings_ms={"search": 10.0, "embed": 5.0, "first_token": first, "generate": generate},
        usage=Usage(100, tokens, truncated=tokens > 40),
        **more,
    )
    return scored(Question("q", "When?"), answer)


def test_times_are_those_of_the_model() -> None:
    fine = [timed(20.0, 11, 100.0), timed(40.0, 41, 200.0), timed(60.0, 0, 0.0)]
    failed = timed(9000.0, 2, 0.1, degraded=("generator",), invalid_markers=2)
    done = summary("set", [*fine, failed], seconds=2.0)
    assert done.ttft_ms["p50"] == pytest.approx(40.0)
    assert done.tokens_per_s["median"] == pytest.approx((100 + 200) / 2)
    assert done.tokens_per_s["overall"] == pytest.approx((11 + 41 + 2) / 2)
    counted = ("degraded", "truncated", "invalid_markers")
    assert [done.counts[name] for name in counted] == [1, 1, 2]
    whole = summary("set", fine, seconds=2.0, streamed=False)
    assert whole.ttft_ms == {}
    assert list(whole.tokens_per_s) == ["overall"]


def test_verdicts_are_figures_and_missing_ones_are_counted() -> None:
    def judged(verdict: Verdict | None, answer: Answer = ANSWER) -> Scored:
        return scored(Question("q", "When?"), answer, verdict=verdict)

    three = [judged(Verdict(True, True, "")), judged(Verdict(None, False, "")), judged(None)]
    done = summary("set", [*three, judged(None, REFUSED)], seconds=1.0, judged=True)
    assert (done.metrics["judged_correct"], done.metrics["judged_grounded"]) == (1.0, 0.5)
    assert done.counts["no_verdict"] == 1
    assert "answers without a verdict of the judge: 1" in done.remarks
    assert "no_verdict" not in summary("set", three, seconds=1.0).counts


# --- questions


def write(folder: Any, *lines: str) -> Any:
    path = folder / "queries.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_questions_say_what_is_known_of_them(tmp_path: Any) -> None:
    path = write(
        tmp_path,
        '{"_id": "a", "text": "When?", "answers": ["7", "", "seven"]}',
        '{"_id": 2, "question": "Why?", "metadata": {"answerable": false}, "answers": []}',
        '{"text": "And then?", "answers": "8", "answerable": false,'
        ' "metadata": {"answerable": true},'
        ' "earlier": ["When?", {"question": "Why?", "answer": "So."}]}',
        '{"_id": "d", "text": "Who?", "metadata": null}',
        '{"_id": "e", "text": "Where?", "metadata": {"answers": ["there"]}}',
    )
    assert read(path) == [
        Question("a", "When?", ("7", "seven"), True),
        Question("2", "Why?", (), False),
        Question("3", "And then?", ("8",), False, (Turn("When?", ""), Turn("Why?", "So."))),
        Question("d", "Who?"),
        Question("e", "Where?", ("there",), True),
    ]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "holds no questions"),
        (['{"_id": "a"}'], 'line 1 has no "text"'),
        (['{"text": "a"}', '{"text": 5}'], "line 2 has a question that is not text"),
        (['{"text": " "}'], "line 1 cannot be asked"),
        (['{"_id": "x", "text": "a"}'] * 2, "line 2 has the _id 'x' of a line before it"),
        (['{"text": "a", "answerable": "no"}'], 'line 1 has an "answerable"'),
        (['{"text": "a", "answers": [1]}'], 'line 1 has "answers"'),
        (['{"text": "a", "earlier": "b"}'], 'line 1 has an "earlier"'),
        (['{"text": "a", "earlier": [{"answer": "b"}]}'], "line 1 has a question that is not"),
        (['{"text": "a", "earlier": [{"question": "b", "answer": 1}]}'], "an answer that is not"),
        (["[]"], "line 1 is not a JSON object"),
    ],
)
def test_a_line_that_is_wrong_is_named(lines: Sequence[str], says: str, tmp_path: Any) -> None:
    with pytest.raises(InputError, match=says):
        read(write(tmp_path, *lines))
