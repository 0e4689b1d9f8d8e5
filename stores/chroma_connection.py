"""What a collection of Chroma needs of its connection, and the one to a server."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from weakref import finalize

import httpx
from chromadb.api.client import Client
from chromadb.config import Settings
from chromadb.errors import ChromaError, NotFoundError

from rag.errors import StoreError, StoreUnavailable, UnsupportedFilter


class Connection(Protocol):
    """To a server, or to the engine in this process."""

    location: str

    def use(self) -> AbstractContextManager[Any]:
        """The client, for one operation; may be nested.

        Raises StoreUnavailable. NotFoundError passes: only the caller knows what was missing.
        """

    def writing(self, collection: str = "") -> AbstractContextManager[None]:
        """Inside `use`, around one change; `collection` is the id of the one that gets rows."""

    def claim(self, owner: object) -> None:
        """Be the one process that writes rows, until `release`. Raises StoreUnavailable."""

    def release(self, owner: object) -> None:
        """Give the claim back, when no other owner has it."""

    def close(self) -> None:
        """Free everything; the next `use` connects again."""


class ChromaServer:
    """A Chroma server. It puts what its clients do in order, so there is nothing to claim."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        ssl: bool,
        token: str,
        tenant: str,
        database: str,
        timeout_s: float,
    ) -> None:
        self.location = f"{'https' if ssl else 'http'}://{host}:{port}"
        self._host, self._port, self._ssl = host, port, ssl
        self._token, self._tenant, self._database = token, tenant, database
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._client: Any = None
        self._hang_up: Callable[[], Any] = lambda: None

    @contextmanager
    def use(self) -> Iterator[Any]:
        with translated(f"at {self.location}", self._hint):
            with self._lock:
                if self._client is None:
                    self._client = self._connect()
                client = self._client
            yield client

    @contextmanager
    def writing(self, collection: str = "") -> Iterator[None]:
        yield

    def claim(self, owner: object) -> None:
        pass

    def release(self, owner: object) -> None:
        pass

    def close(self) -> None:
        with self._lock:
            self._client = None
            self._hang_up()

    def _connect(self) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        # First a request of our own: the client would wait without end for what is no Chroma.
        url = f"{self.location}/api/v2/tenants/{self._tenant}/databases/{self._database}"
        answer = httpx.get(url, headers=headers, timeout=min(5, self._timeout_s))
        if answer.status_code in (401, 403):
            raise StoreUnavailable(f"Chroma at {self.location} refuses us", "set the right token")
        if answer.status_code == 404 and "NotFoundError" in answer.text:
            raise StoreUnavailable(
                f"Chroma at {self.location} has no database {self._database!r} "
                f"of tenant {self._tenant!r}",
                "set the right tenant and database",
            )
        if answer.status_code != 200 or '"tenant"' not in answer.text:
            raise httpx.RemoteProtocolError("no answer of Chroma 1 or newer")
        options = settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=self._host,
            chroma_server_http_port=self._port,
            chroma_server_ssl_enabled=self._ssl,
            chroma_server_headers=headers,
        )
        client: Any = _Client(self._tenant, self._database, options, self._timeout_s)
        # The client leaves both of its sessions open when it is closed.
        sessions = [each._server._session for each in (client, client._admin_client)]
        self._hang_up = finalize(self, _close, client, *sessions)
        return client

    def _hint(self, reason: str) -> str:
        if "Payload too large" in reason:
            return "raise max_payload_size_bytes in the server's configuration"
        return (
            f"start it with: chroma run --host {self._host} --port {self._port}, "
            "or set the right host and port"
        )


class _Client(Client):
    """The client, with the time limit that it lacks, from its first request on."""

    def __init__(self, tenant: str, database: str, options: Settings, seconds: float) -> None:
        self._limit = httpx.Timeout(seconds, connect=5)
        super().__init__(tenant, database, options)

    def get_user_identity(self) -> Any:
        server: Any = self._server
        server._session.timeout = self._limit
        return server.get_user_identity()  # the client's own hides what went wrong

    def _validate_tenant_database(self, tenant: str, database: str) -> None:
        """`ChromaServer` has asked; this would, by another session, and wait without end."""


def settings(**more: Any) -> Settings:
    """No telemetry, and nothing from a .env file that lies about."""
    values: dict[str, Any] = {"_env_file": None, "anonymized_telemetry": False}
    return Settings(**values | more)


@contextmanager
def translated(place: str, hint: Callable[[str], str]) -> Iterator[None]:
    """The client's exceptions as ours; `hint` says what to do about a reason."""
    try:
        yield
    except NotFoundError:
        raise
    except (ChromaError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise _failure(place, error, hint) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise _failure(place, error, hint) from error  # an answer that the client does not know


def _failure(place: str, error: Exception, hint: Callable[[str], str]) -> StoreError:
    reason = " ".join(str(error).split())[-200:] or type(error).__name__
    if re.search("Expression tree|SQL variables|Invalid where clause", reason):
        return UnsupportedFilter(
            "the filter is larger than Chroma takes", "use fewer conditions and values"
        )
    return StoreUnavailable(f"Chroma {place} failed ({reason})", hint(reason))


def _close(*opened: Any) -> None:
    for each in opened:
        each.close()
