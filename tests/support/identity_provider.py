"""An identity provider on 127.0.0.1: it signs tokens, and publishes its keys as a JWKS."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://id.example.com/"
AUDIENCE = "rag"


@cache  # it takes a good part of a second
def _generated(kid: str, algorithm: str) -> Any:
    if algorithm.startswith("ES"):
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class IdentityProvider:
    """A context manager. `requests` counts how often its keys were asked for.

    `reply` is called for the status and body of each answer; by default it gives the keys.
    """

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.add_key("first")
        self.requests = 0
        self.reply: Callable[[], tuple[int, bytes]] = lambda: (200, self.jwks())
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def __enter__(self) -> IdentityProvider:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where its keys are."""
        return f"http://127.0.0.1:{self.port}/jwks"

    def start(self) -> None:
        """Listen, on the same port as before."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests += 1
                status, body = provider.reply()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on. Idempotent."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def add_key(self, kid: str, algorithm: str = "RS256") -> None:
        """A new key that tokens can be signed with."""
        self.keys[kid] = _generated(kid, algorithm)

    def jwks(self) -> bytes:
        """The public keys as they are published."""
        published = []
        for kid, key in self.keys.items():
            algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
            published.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid})
        return json.dumps({"keys": published}).encode()

    def token(self, kid: str = "first", **claims: Any) -> str:
        """A token that it signs. A claim that is None is left out."""
        key = self.keys[kid]
        algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(self.claims(**claims), key, algorithm, headers={"kid": kid})

    @staticmethod
    def claims(**claims: Any) -> dict[str, Any]:
        """The claims of a token that is good for a minute, with these in place of the usual."""
        usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": int(time.time()) + 60}
        return {k: v for k, v in {**usual, **claims}.items() if v is not None}
