"""The real Milvus 2.3.5: a server in a process of its own, from the package `milvus`.

It listens on all interfaces. So it lives in a network namespace that has none: this module's
process moves into one, starts the server there, and forwards a port of 127.0.0.1 to it. That port
is outside, because a socket stays in the namespace that it was made in. Where namespaces are
refused, the server is started without.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN = "root:Milvus"
QUICK = {
    "common.security.authorizationEnabled": "true",
    "proxy.timeTickInterval": "20",  # ms that a strong read waits, instead of 200
    "queryCoord.checkChannelInterval": "50",  # ms before a collection is loaded, instead of 1,000
}
"""Settings for tests: a token is wanted, and waits are short."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


@contextmanager
def milvus_server(
    folder: Path | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a server, killed at the end; its data stays in `folder`, if given.

    `settings` are those of its configuration file, such as `QUICK`.
    """
    given = {key.replace(".", "_").upper(): value for key, value in (settings or {}).items()}
    with (
        tempfile.TemporaryDirectory() as temporary,
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, __file__, str(folder or temporary)],
            env={**os.environ, **given},
            stdin=subprocess.PIPE,  # closes with this process: then the server ends too
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().decode().strip()
            if not address:
                log.seek(0)
                raise RuntimeError(f"no Milvus: {log.read()[-2000:].decode(errors='replace')}")
            yield address
        finally:
            process.terminate()


def _isolate() -> None:
    """Move this process into a network namespace of its own, where that is allowed."""
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    if ctypes.CDLL(None).unshare(flags) == 0:
        with socket.socket() as any_socket:  # `ip link set lo up`
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


async def _forward(listening: socket.socket, port: int) -> None:
    """Until standard input closes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    await asyncio.start_server(connected, sock=listening)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**18):
            writer.write(data)
            await writer.drain()
    writer.close()


def _main(folder: str) -> None:
    from milvus import MilvusServer, MilvusServerConfig

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        _isolate()
        server = MilvusServer(MilvusServerConfig(data_dir=folder))
        try:
            server.start()
            asyncio.run(_forward(listening, server.listen_port))
        finally:
            if server.server_proc:
                server.server_proc.kill()  # stop() would wait a second, and kill it then


if __name__ == "__main__":
    _main(sys.argv[1])
