"""What goes wrong with servers that are asked through OpenAI's own client."""

from __future__ import annotations

import openai

from rag import model_server
from rag.errors import ModelError
from rag.model_server import complaint, refusal

# The client translates errors until the answer begins; those of the body pass through it.
TRANSPORT_ERRORS = (openai.OpenAIError, *model_server.TRANSPORT_ERRORS)
"""What reading from a server through the client may raise."""


def translated(error: Exception, part: str, url: str) -> ModelError:
    """An error of TRANSPORT_ERRORS as this application's. `part` is the section of its settings."""
    if isinstance(error, openai.APIStatusError):
        return refusal(error.status_code, complaint(error.body)[1], part, url)
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
    return model_server.translated(cause, part, url)
