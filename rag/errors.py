"""Every error that reaches a user, and the exit or HTTP status that it stands for.

    RagError                      a message, and a hint that says what to do next
    |- InputError                 the request itself is wrong
    |  `- InvalidFilter           a `where` that is not in the filter language
    |- ConfigError                a setting is wrong
    |  |- UnknownPlugin           no store, embedder, generator or reader of that name
    |  `- MissingExtra            the plug-in is known, its package is not installed
    |- IngestError                documents could not be taken in
    |  |- UnreadableFile          one file: broken, protected, without text
    |  `- UnsupportedFormat       one file: no reader for its format
    |- StoreError                 the store refused or failed
    |  |- StoreUnavailable        not reachable, locked by a writer, out of space
    |  |  `- CollectionGone       deleted or replaced since it was opened
    |  |- UnknownCollection       no collection of that name
    |  |- UnknownDocument         no document of that id or source
    |  |- DimensionMismatch       vectors of another size than the collection's
    |  |- MetricMismatch          another metric than the collection's
    |  |- EmbedderMismatch        another embedder than the collection's
    |  `- UnsupportedFilter       a filter that this store cannot apply exactly
    |- ModelError                 an embedder or generator failed
    |  |- ModelUnavailable        not there, not reachable, not answering
    |  `- ContextTooLong          the text does not fit the model
    `- RequestRefused             the service does not take the request
       |- Unauthenticated         no key, or a wrong one
       |- Forbidden               the key does not allow this
       |- NotFound                no such job, answer or page
       |- TooLarge                the body or the file is over the limit
       |- TooSlow                 the request did not come in time
       |- TooManyRequests         the limit of rate is used up
       `- Overloaded              too much at a time, or too late

Adapters raise these `from` the client's own exception. What is not in this tree is a bug.
"""

from __future__ import annotations

from typing import ClassVar


class RagError(Exception):
    """An error for a person: `message` says what is wrong, `hint` what to do next."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """One line: the message, then the hint."""
        line = f"{self.message}; {self.hint}" if self.hint else self.message
        return " ".join(line.split())


class InputError(RagError):
    """The request itself is wrong: an empty question, a path that is not there."""

    exit_code = 2
    http_status = 422


class InvalidFilter(InputError):
    """A `where` that is not in the filter language of `rag.filters`."""


class ConfigError(RagError):
    """A setting has a value that cannot be used."""

    exit_code = 2


class UnknownPlugin(ConfigError):
    """No plug-in of that kind has this name."""


class MissingExtra(ConfigError):
    """The plug-in needs a package that is not installed."""


class IngestError(RagError):
    """Documents could not be taken in."""

    exit_code = 1
    http_status = 422


class UnreadableFile(IngestError):
    """One file is broken, protected or holds no text."""


class UnsupportedFormat(IngestError):
    """One file has a format that no reader knows."""

    http_status = 415


class StoreError(RagError):
    """The store refused an operation or failed in one."""

    exit_code = 3


class StoreUnavailable(StoreError):
    """The store cannot be used now: not reachable, locked by a writer, out of space."""

    http_status = 503


class CollectionGone(StoreUnavailable):
    """The collection was deleted, or replaced by another, since it was opened."""


class UnknownCollection(StoreError):
    """The store has no collection of that name."""

    exit_code = 4
    http_status = 404


class UnknownDocument(StoreError):
    """The collection has no document of that id or source."""

    exit_code = 4
    http_status = 404


class DimensionMismatch(StoreError):
    """Vectors of another size than the collection's."""


class MetricMismatch(StoreError):
    """Another metric than the collection's."""


class EmbedderMismatch(StoreError):
    """Another embedder than the one that the collection was made with."""


class UnsupportedFilter(StoreError):
    """A valid filter that this store cannot apply exactly."""

    exit_code = 2
    http_status = 422


class ModelError(RagError):
    """An embedder or a generator failed."""

    exit_code = 5
    http_status = 502


class ModelUnavailable(ModelError):
    """The model is not there, not reachable, or not answering."""

    http_status = 503


class ContextTooLong(ModelError):
    """The text does not fit the model's window."""

    http_status = 422


class RequestRefused(RagError):
    """The service does not take the request. `retry_after` is in seconds; 0: do not try again."""

    http_status = 400

    def __init__(self, message: str, hint: str = "", retry_after: float = 0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class Unauthenticated(RequestRefused):
    """There is no key, or a wrong one."""

    http_status = 401


class Forbidden(RequestRefused):
    """The key does not allow this."""

    http_status = 403


class NotFound(RequestRefused):
    """There is no such job, answer or page."""

    http_status = 404


class TooLarge(RequestRefused):
    """The body or the file is over the limit."""

    http_status = 413


class TooSlow(RequestRefused):
    """The request did not come in time, or its reply was not read in time."""

    http_status = 408


class TooManyRequests(RequestRefused):
    """The limit of rate is used up."""

    http_status = 429


class Overloaded(RequestRefused):
    """There is too much to do at a time, or the answer was not there in time."""

    http_status = 503


class RagWarning(UserWarning):
    """What a person should know although it works: one line, shown without a trace."""


EXIT_CODES = {
    0: "done",
    1: "some files failed (each is named), a figure is under --fail-under, or an unexpected error",
    2: "the command, a filter or a setting is wrong",
    3: "the store refused or failed",
    4: "no such collection or document",
    5: "the embedder or the generator failed",
    130: "interrupted",
}
