"""Where the next page of documents begins, as a text that means nothing to clients."""

from __future__ import annotations

import base64
import json

from rag.errors import InputError
from rag.types import DocumentKey


def to_text(key: DocumentKey) -> str:
    """The cursor behind that key: letters, digits, "-" and "_"."""
    return (
        base64.urlsafe_b64encode(json.dumps(key, ensure_ascii=False).encode()).decode().rstrip("=")
    )


def to_key(text: str) -> DocumentKey:
    """The key of a cursor. Raises InputError for what is none."""
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        match found:
            case [str(source), str(version), str(document)]:
                "".join(found).encode()  # a lone surrogate is no text
                return DocumentKey(source, version, document)
            case _:
                raise ValueError("not a key")
    except (ValueError, RecursionError) as error:
        raise InputError(
            "'after' is no cursor", "send what 'next' was in a reply of GET /documents"
        ) from error
