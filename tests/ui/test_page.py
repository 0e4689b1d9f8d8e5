"""The page as it decides what to show, with a real service behind it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from http_client import OFF_TOPIC, QUESTION
from servers import wait_until
from streamlit.testing.v1 import AppTest

from ui.conversation import Conversation


def ask(app: AppTest, question: str = QUESTION) -> AppTest:
    app.chat_input(key="question").set_value(question).run()
    assert not app.exception
    return app


def press(app: AppTest, label: str) -> None:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception


def conversation(app: AppTest) -> Conversation:
    kept: Conversation = app.session_state["conversation"]
    return kept


def last(app: AppTest) -> dict[str, Any]:
    answer = conversation(app).exchanges[-1].answer
    assert answer is not None, conversation(app).exchanges[-1].problem
    return answer


def said(elements: Any) -> str:
    return "\n".join(str(element.value) for element in elements)


def chips(app: AppTest) -> list[str]:
    return [button.label for button in app.button if (button.key or "").startswith("cited/")]


def test_a_new_tab_says_what_is_asked(app: AppTest) -> None:
    assert "default" in said(app.markdown)
    assert app.selectbox(key="collection").value == "default"


def test_an_answer_shows_its_citations_and_says_that_it_is_quoted(app: AppTest) -> None:
    ask(app)
    assert "Hold both arrow keys" in last(app)["answer"]
    assert len(chips(app)) == len(last(app)["citations"]) >= 1
    assert "operator" in chips(app)[0]
    assert "No language model is set" in said(app.caption)
    assert not app.error and not app.warning and not app.info


def test_an_abstention_looks_like_none_of_its_answers(app: AppTest) -> None:
    ask(app, OFF_TOPIC)
    assert last(app)["abstained"]
    assert "do not hold an answer" in said(app.info)
    assert chips(app) == []


def test_what_is_chosen_goes_along(app: AppTest) -> None:
    app.button_group(key="mode").set_value("keyword")
    app.slider(key="top_k").set_value(2).run()
    ask(app)
    chosen = conversation(app).exchanges[-1].choices
    assert (chosen.mode, chosen.top_k) == ("keyword", 2)
    assert len({one["chunk_id"] for one in last(app)["citations"]}) <= 2
    command, request = (one.value for one in app.code)
    assert "--mode keyword" in command and "--top-k 2" in command
    assert '"mode": "keyword"' in request


def test_filters_are_of_what_is_there_and_leave_the_others_out(app: AppTest) -> None:
    fields = app.multiselect(key="fields/default")
    assert {"lang", "year"} <= set(fields.options)
    fields.set_value(["lang", "year"]).run()
    assert app.number_input(key="field/default/year/number/from").value == 2024
    values = app.multiselect(key="field/default/lang/text")
    assert len(values.options) >= 2
    values.set_value(["zh"]).run()
    ask(app)
    assert conversation(app).exchanges[-1].choices.where == {"lang": {"$in": ["zh"]}}
    assert all("/zh/" in one["source"] for one in last(app)["citations"])


def test_a_follow_up_has_the_turns_before_it(app: AppTest) -> None:
    ask(app, "What does the TK-40 cost?")
    ask(app, "And in red?")
    asked = conversation(app)
    assert asked.turns(asked.exchanges[-1]) == [
        {"question": "What does the TK-40 cost?", "answer": asked.exchanges[0].answer["answer"]}  # type: ignore[index]
    ]
    assert "TK-40" in last(app)["search"]
    assert "Searched for" in said(app.caption)


def test_an_answer_anew_is_not_the_kept_one(app: AppTest) -> None:
    ask(app)
    press(app, "New conversation")
    ask(app)
    assert last(app)["cached"]
    press(app, "Answer anew")
    assert not last(app)["cached"]
    assert len(conversation(app).exchanges) == 1


def test_a_thumb_and_a_comment_are_kept_by_the_service(app: AppTest) -> None:
    ask(app)
    (exchange,) = conversation(app).exchanges
    app.feedback(key=f"rating/{exchange.id}").set_value(1).run()
    assert conversation(app).exchanges[0].rating == "up"
    app.text_area(key=f"comment-text/{exchange.id}").set_value("Right.")
    press(app, "Send")
    assert conversation(app).exchanges[0].commented
    press(app, "Answer anew")
    anew = conversation(app).exchanges[0]
    assert app.feedback(key=f"rating/{anew.id}").value is None


def test_a_new_conversation_is_empty(app: AppTest) -> None:
    ask(app)
    press(app, "New conversation")
    assert conversation(app).exchanges == []


def test_a_rerun_asks_nothing_again(app: AppTest) -> None:
    ask(app)
    before = json.dumps(last(app))
    app.slider(key="top_k").set_value(7).run()
    assert json.dumps(last(app)) == before


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_nothing_is_not_asked(app: AppTest, text: str) -> None:
    app.chat_input(key="question").set_value(text).run()
    assert conversation(app).exchanges == []


def test_in_chinese(app: AppTest) -> None:
    app.button_group(key="lang").set_value("zh").run()
    assert app.title[0].value == "向您的文档提问"
    ask(app, OFF_TOPIC)
    assert "文档中没有这个问题的答案" in said(app.info)


# --- documents


def listed(app: AppTest) -> list[str]:
    return [one.value.replace("\\", "") for one in app.markdown if "note" in one.value]


def names(numbers: range) -> list[str]:
    return [f"docs/note-{n:02}.md" for n in numbers]


def test_documents_are_listed_a_page_at_a_time_and_searched(many: AppTest) -> None:
    assert listed(many) == names(range(25))
    many.button(key="next").click().run()
    assert listed(many) == names(range(25, 50))
    many.button(key="next").click().run()
    assert listed(many) == names(range(50, 60))
    assert many.button(key="next").disabled
    many.button(key="previous").click().run()
    assert listed(many) == names(range(25, 50))
    many.text_input(key="search").set_value("NOTE-1").run()
    assert listed(many) == names(range(10, 20))
    many.text_input(key="search").set_value("%").run()
    assert listed(many) == []
    assert "No document has" in said(many.caption)


def test_files_are_added_and_what_is_none_is_refused_in_words(many: AppTest) -> None:
    files = [("new.txt", b"The word of the new one is xyzzy.", "text/plain"), ("no.pdf", b"x", "")]
    many.file_uploader[0].set_value(files).run()
    press(many, "Add 2 files to default")
    wait_until(lambda: "taken in" in said(many.run().success), 60)
    assert "no\\.pdf" in said(many.error)


# --- evaluation


def test_an_evaluation_is_run_and_shown(evaluation: AppTest) -> None:
    assert "Nothing has been evaluated yet" in said(evaluation.caption)
    evaluation.number_input[0].set_value(20)
    press(evaluation, "Start")
    wait_until(lambda: len(runs(evaluation.run())) == 1, 120)
    assert not evaluation.exception and not evaluation.error
    assert "The worst questions" in said(evaluation.subheader)


def runs(app: AppTest) -> list[str]:
    found = [one for one in app.selectbox if one.label == "Run"]
    return list(found[0].options) if found else []
