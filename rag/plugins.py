"""The registry of backends: a name leads to a class that is imported on first use.

Third parties add theirs through entry points in the groups `rag.stores`, `rag.embedders`,
`rag.rerankers`, `rag.generators` and `rag.readers` (named by file suffix), without a line changed
here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

from rag.errors import ConfigError, MissingExtra, UnknownPlugin

Kind: TypeAlias = Literal["store", "embedder", "reranker", "generator", "reader"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """Where a backend lives, the packages it imports and the extra that brings them."""

    target: str
    requires: tuple[str, ...] = ()
    extra: str = ""

    @property
    def command(self) -> str:
        """What to run to have it."""
        return f"pip install 'ragline[{self.extra}]'"


_MARKDOWN = Plugin("ingest.readers.markdown:read")
_HTML = Plugin("ingest.readers.html:read")
_TEXT = Plugin("ingest.readers.text:read")

BUILT_IN: dict[Kind, dict[str, Plugin]] = {
    "store": {
        "chroma": Plugin("stores.chroma:ChromaBackend", ("chromadb",), "chroma"),
        "faiss": Plugin("stores.faiss:FaissBackend", ("faiss",), "faiss"),
        "memory": Plugin("stores.memory:MemoryBackend"),
        "milvus": Plugin("stores.milvus:MilvusBackend", ("pymilvus",), "milvus"),
        "pinecone": Plugin("stores.pinecone:PineconeBackend", ("pinecone",), "pinecone"),
    },
    "embedder": {
        "openai": Plugin("rag.embedders.openai:OpenAIEmbedder", ("openai",), "openai"),
        "sentence-transformers": Plugin(
            "rag.embedders.sentence_transformers:SentenceTransformersEmbedder",
            ("sentence_transformers", "torch"),
            "sentence-transformers",
        ),
    },
    "reranker": {
        "cross-encoder": Plugin(
            "rag.rerankers.cross_encoder:CrossEncoderReranker",
            ("sentence_transformers", "torch"),
            "sentence-transformers",
        ),
        "http": Plugin("rag.rerankers.http:HttpReranker", ("httpx2",), "openai"),
    },
    "generator": {
        "extractive": Plugin("rag.generators.extractive:ExtractiveGenerator"),
        "llamacpp": Plugin(
            "rag.generators.llamacpp:LlamaCppGenerator",
            ("xllamacpp", "httpx2", "tenacity"),
            "llamacpp",
        ),
        "openai": Plugin("rag.generators.openai:OpenAIGenerator", ("httpx2", "tenacity"), "openai"),
        "vllm": Plugin("rag.generators.vllm:vllm_generator", ("httpx2", "tenacity"), "openai"),
    },
    "reader": {
        ".docx": Plugin("ingest.readers.docx:read"),
        ".htm": _HTML,
        ".html": _HTML,
        ".markdown": _MARKDOWN,
        ".md": _MARKDOWN,
        ".pdf": Plugin("ingest.readers.pdf:read"),
        ".text": _TEXT,
        ".txt": _TEXT,
    },
}


def names(kind: Kind) -> list[str]:
    """The names of all plug-ins of this kind, built in or installed, sorted."""
    return sorted({*BUILT_IN[kind], *(point.name for point in _entry_points(kind))})


def check(kind: Kind, name: str) -> None:
    """Raise UnknownPlugin unless there is a plug-in of that name."""
    if name not in BUILT_IN[kind] and name not in names(kind):
        raise _unknown(kind, name)


def load(kind: Kind, name: str) -> Any:
    """The class (or reading function) of that name.

    Raises UnknownPlugin, or MissingExtra when a package that it needs is not installed. Any other
    ImportError passes untouched, because it is a broken installation and its text says which.
    """
    plugin = BUILT_IN[kind].get(name)
    if plugin is None:
        for point in _entry_points(kind):
            if point.name == name:
                return point.load()
        raise _unknown(kind, name)
    missing = [package for package in plugin.requires if find_spec(package) is None]
    if missing:
        raise MissingExtra(
            f"the {kind} {name!r} needs {' and '.join(missing)}",
            f"install it with: {plugin.command}",
        )
    module, _, attribute = plugin.target.partition(":")
    return getattr(import_module(module), attribute)


def require(extra: str, *packages: str) -> None:
    """Raise MissingExtra unless the packages of an extra are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtra(
            f"this needs {' and '.join(missing)}",
            f"install it with: pip install 'ragline[{extra}]'",
        )


def options(
    make: Callable[..., Any], section: str, given: Mapping[str, Any], leave_out: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings of a plug-in, checked against the annotations of what makes it.

    Text is converted where it came from the environment. Raises ConfigError, naming the setting.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    signature = inspect.signature(make, eval_str=True)
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif name not in leave_out:
            needed = parameter.default is parameter.empty
            fields[name] = (parameter.annotation, ... if needed else parameter.default)
    config = ConfigDict(extra=extra, protected_namespaces=())
    model = create_model("Options", __config__=config, **fields)
    try:
        return {name: value for name, value in model(**given) if name in given}
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join([section, *map(str, first["loc"])])
        known = ", ".join(sorted(fields))
        wrong = (
            "is no setting" if first["type"] == "extra_forbidden" else f"is wrong ({first['msg']})"
        )
        raise ConfigError(f"{name} {wrong}", f"settings of {section} are: {known}") from error


def versions(plugin: Plugin) -> dict[str, str]:
    """The version of each package that the plug-in needs; empty text for one that is missing."""
    from importlib.metadata import packages_distributions, version

    known = packages_distributions() if plugin.requires else {}
    return {
        package: version(known[package][0]) if find_spec(package) and package in known else ""
        for package in plugin.requires
    }


def _unknown(kind: Kind, name: str) -> UnknownPlugin:
    known = names(kind)
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "known are: " + ", ".join(known)
    return UnknownPlugin(f"there is no {kind} named {name!r}", hint)


def _entry_points(kind: Kind) -> Any:
    return _installed(kind, tuple(sys.path))


@cache
def _installed(kind: Kind, _path: tuple[str, ...]) -> Any:
    """Looked up once for a search path: it reads the metadata of every installed package."""
    from importlib.metadata import entry_points

    return entry_points(group=f"rag.{kind}s")
