"""The service that the pages of this process ask."""

from __future__ import annotations

from dataclasses import dataclass

from ui.client import Service


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to ask, with the key for all who open the page, if there is one.

    `own`: the service is in this process, and has no address that others could use.
    """

    service: Service
    own: bool = False
    max_upload_mb: int = 100


_current: Connection | None = None


def use(connection: Connection | None) -> None:
    """Have the pages ask there from now on: Streamlit runs them, and passes nothing on."""
    global _current
    if _current is not None:
        _current.service.close()
    _current = connection


def current() -> Connection:
    """Where to ask."""
    if _current is None:
        raise RuntimeError("start the page with `rag ui`, not with `streamlit run`")
    return _current
