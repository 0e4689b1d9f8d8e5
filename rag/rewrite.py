"""Conversation -> one question that can be searched for on its own."""

from __future__ import annotations

from collections.abc import Sequence

_TURNS = 2  # earlier questions that still tell what "it" is
_CHARACTERS = 2_000  # more would leave the question little weight, and embedders cut it off


def standalone(question: str, earlier: Sequence[str] = ()) -> str:
    """The question together with what the user asked before it, the latest of `earlier` last.

    No model is needed: the words that a follow-up leaves out stand in the turns before it. What
    was said last comes first, because embedders cut off the end of what is too long.
    """
    turns = [" ".join(turn.split()) for turn in earlier if turn.strip()][-_TURNS:]
    joined = question
    for turn in dict.fromkeys(reversed(turns)):
        if turn != question and len(joined) + len(turn) < _CHARACTERS:
            joined += f"\n{turn}"
    return joined
