"""What OpenAI's chat completions can ask for here: an answer from documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
)
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema, to_json

from rag.retrieve import MAX_QUESTION
from rag.service.schemas import (
    MAX_ANSWER,
    MAX_TURNS,
    TEXT,
    MaxTokens,
    QueryIn,
    TurnIn,
    legible,
)

Json: TypeAlias = dict[str, Any]


def _joined(content: object) -> object:
    """The text of a list of parts; what is no list is left as it is."""
    if not isinstance(content, list):
        return content
    texts = [part["text"] for part in content if _is_text(part)]
    if len(texts) < len(content):
        raise PydanticCustomError("content", "parts of type 'text' alone are understood")
    return "\n".join(texts)


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and type(part.get("text")) is str


def _text_or_parts(text: Json) -> WithJsonSchema:
    properties = {"type": {"const": "text"}, "text": text}
    part = {"type": "object", "properties": properties, "required": ["type", "text"]}
    parts = {"type": "array", "items": part, "minItems": 1, "maxItems": 100}
    return WithJsonSchema({"anyOf": [text, parts]})


Asked: TypeAlias = Annotated[
    str,
    Field(max_length=MAX_QUESTION),
    BeforeValidator(_joined),
    AfterValidator(legible),
    _text_or_parts({"type": "string", "minLength": 1, "maxLength": MAX_QUESTION, "pattern": TEXT}),
]
Said: TypeAlias = Annotated[
    str,
    Field(max_length=MAX_ANSWER),
    BeforeValidator(_joined),
    _text_or_parts({"type": "string", "maxLength": MAX_ANSWER}),
]


@dataclass(frozen=True, slots=True)
class Only:
    """What a field may ask for: nothing, or what is done anyway. Else it is refused."""

    values: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, _: Any, __: Any) -> Json:
        return {"enum": [None, *self.values]}

    def _checked(self, value: object) -> object:
        kind = isinstance(value, bool)  # 1 is 1.0, and not true
        if any(value == one and isinstance(one, bool) == kind for one in (None, *self.values)):
            return value
        known = " or ".join(to_json(one).decode() for one in (*self.values, None))
        raise PydanticCustomError(
            "unsupported", "this is not supported; leave it out, or send {known}", {"known": known}
        )


class Lenient(BaseModel):
    """What clients send: fields that we do not know are ignored, for there are many."""

    model_config = ConfigDict(strict=True, extra="ignore")


class SystemMessage(Lenient):
    """Not obeyed: the prompt is that of the service."""

    role: Literal["system", "developer"]
    content: Said


class UserMessage(Lenient):
    """A question."""

    role: Literal["user"]
    content: Asked


class AssistantMessage(Lenient):
    """What was answered."""

    role: Literal["assistant"]
    content: Said | None = None


Message: TypeAlias = Annotated[
    SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")
]


class StreamOptions(Lenient):
    """Of a stream."""

    include_usage: bool | None = None


class ChatIn(Lenient):
    """A conversation: its last question is answered, the turns before it are its history."""

    model: str = Field(
        max_length=256, description="A collection; `rag` is that of the settings.", examples=["rag"]
    )
    messages: list[Message] = Field(
        min_length=1,
        json_schema_extra={
            "contains": {"properties": {"role": {"const": "user"}}, "required": ["role"]}
        },
        examples=[[{"role": "user", "content": "How many days of leave do I get?"}]],
    )
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Any, Only((1,))] = None
    tools: Annotated[Any, Only(([],))] = None
    tool_choice: Annotated[Any, Only(("none", "auto"))] = None
    functions: Annotated[Any, Only(([],))] = None
    function_call: Annotated[Any, Only(("none", "auto"))] = None
    response_format: Annotated[Any, Only(({"type": "text"},))] = None
    modalities: Annotated[Any, Only((["text"],))] = None
    audio: Annotated[Any, Only()] = None
    logprobs: Annotated[Any, Only((False,))] = None
    top_logprobs: Annotated[Any, Only((0,))] = None
    logit_bias: Annotated[Any, Only(({},))] = None
    stop: Annotated[Any, Only(([],))] = None
    web_search_options: Annotated[Any, Only()] = None

    @field_validator("messages")
    @classmethod
    def _asks(cls, messages: list[Message]) -> list[Message]:
        if not any(isinstance(message, UserMessage) for message in messages):
            raise PydanticCustomError("no_question", "there is no message with role 'user'")
        return messages

    def query(self, collection: str) -> QueryIn:
        """The question to a collection, as POST /query would get it."""
        turns: list[TurnIn] = []
        for message in self.messages:
            if isinstance(message, UserMessage):
                turns.append(TurnIn(question=message.content, answer=""))
            elif isinstance(message, AssistantMessage) and turns:
                turns[-1].answer = message.content or ""
        *earlier, last = turns
        return QueryIn(
            question=last.question,
            collection=collection,
            history=earlier[-MAX_TURNS:],
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
        )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "rag",
                    "messages": [{"role": "user", "content": "How many days of leave do I get?"}],
                },
                {
                    "model": "rag",
                    "messages": [
                        {"role": "user", "content": "How many days of leave do I get?"},
                        {"role": "assistant", "content": "30 days a year [1]."},
                        {"role": "user", "content": "And in the first year?"},
                    ],
                    "stream": True,
                },
            ]
        }
    )
