"""The documents of a tenant, which tell by a code in them whose they are, and how old.

All tenants have documents of the same names, which answer the same questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

TENANTS = ("acme", "globex")
DOCUMENTS = 12  # of each
_CODE = re.compile(rf"\b({'|'.join(TENANTS).upper()})-(\d\d)-(\d{{4}})\b")


@dataclass
class Held:
    """A document.

    `sent` is the version that was acknowledged last, `done` the one that was taken in last.
    `deletion` counts up, and is 0 while the document is there.
    """

    id: str = ""
    sent: int = 0
    done: int = 0
    deletion: int = 0


Known: TypeAlias = dict[int, tuple[int, int]]


class Shelf:
    """What a tenant has sent in and deleted, and so what it may be shown."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.held = {n: Held() for n in range(DOCUMENTS)}
        self._deletions = 0

    def file(self, n: int) -> tuple[str, bytes]:
        """The next version of a document: its name and its text."""
        code = f"{self.tenant.upper()}-{n:02}-{self.held[n].sent + 1:04}"
        text = f"The access code of unit {n:02} is {code}. The depot changes it every week."
        return f"unit-{n:02}.md", f"# Unit {n:02}\n\n{text}\n".encode()

    def deleted(self, n: int) -> None:
        """A deletion is done."""
        self._deletions += 1
        held = self.held[n]
        held.deletion, held.done = self._deletions, held.sent

    def known(self) -> Known:
        """What a question that is asked from now on may not find any more."""
        return {n: (held.done, held.deletion) for n, held in self.held.items()}

    def wrong_text(self, text: str) -> Iterator[str]:
        """What is wrong with a text that was shown: it is another tenant's."""
        if {code[1] for code in _CODE.finditer(text)} - {self.tenant.upper()}:
            yield f"{self.tenant} is shown the text {text!r}"

    def wrong_passages(self, passages: Sequence[Mapping[str, Any]], known: Known) -> Iterator[str]:
        """The same of passages, for a question that was asked when that was known."""
        for passage in passages:
            yield from self.wrong_text(passage["text"])
            if not passage["source"].startswith(f"upload/tenant={self.tenant}/"):
                yield f"{self.tenant} is shown {passage['source']}"
            for code in _CODE.finditer(passage["text"]):
                n, version = int(code[2]), int(code[3])
                done, deletion = known[n]
                if deletion and deletion == self.held[n].deletion:
                    yield f"{self.tenant} is shown {code[0]}, which was deleted before it asked"
                elif version < done:
                    yield f"{self.tenant} is shown {code[0]}, although version {done} was taken in"

    def wrong_end(self, n: int, passages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """What is wrong with all that there is of a document after the last job."""
        held = self.held[n]
        codes = (code for passage in passages for code in _CODE.finditer(passage["text"]))
        versions = {int(code[3]) for code in codes}
        if versions != (set() if held.deletion else {held.sent}):
            yield f"{self.tenant} has versions {versions} of document {n} at the end, not {held}"


def question(n: int) -> str:
    """What a document answers."""
    return f"What is the access code of unit {n:02}?"
