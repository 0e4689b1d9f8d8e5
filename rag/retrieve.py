"""question -> Hit: the passages nearest to a question."""

from __future__ import annotations

from rag.errors import InputError
from rag.filters import Filter
from rag.protocols import Embedder, VectorStore
from rag.types import Hit

MAX_QUESTION = 8_000  # characters


class Retriever:
    """Searches one collection with the embedder that it was made with."""

    def __init__(self, store: VectorStore, embedder: Embedder) -> None:
        self.store = store
        self.embedder = embedder

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        """The `k` best chunks that match `where`, best first. InputError for no question."""
        check_question(question)
        if k < 1:
            raise InputError(f"top k is {k}", "use 1 or more")
        return self.store.search(self.embedder.embed_queries([question]), k, where)[0]


def check_question(question: str) -> None:
    """Raise InputError for what is no question: empty, not Unicode, or a whole book."""
    if not question.strip():
        raise InputError("the question is empty", "ask something")
    if len(question) > MAX_QUESTION:
        raise InputError(f"the question is over {MAX_QUESTION} characters", "ask a shorter one")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "the question is not valid Unicode", "check the terminal's encoding"
        ) from error
