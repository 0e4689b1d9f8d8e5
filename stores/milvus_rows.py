"""Chunks as rows of a Milvus collection, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
from pymilvus import CollectionSchema, DataType, Function, FunctionType, MilvusClient

from rag.errors import InputError
from rag.filters import kind
from rag.types import Chunk
from stores.keywords import words_of
from stores.milvus_filters import MISSING, PARTITION, dynamic_field, metadata_key
from stores.postings import K1, B

if TYPE_CHECKING:
    from rag.types import Vectors

VECTOR, WORDS, SPARSE = "vector", "words", "sparse"
MORE = "more"
"""The text beyond what `text` holds; the record says whether there is any."""
FIELDS = ["text", "$meta"]
"""What a chunk is read from, besides its id and MORE."""

# Columns are for filters; to read them one by one costs the client 14 µs each for every query.
_RECORD = "record"

# VARCHAR holds 65,535: characters in Lite, but bytes in a server. Cut at a character.
_TEXT_BYTES = 65_532
_MORE = 16
_KEY_BYTES, _NAME_BYTES, _META_BYTES = 4_096, 65_535, 65_535
# "standard" splits at what is no letter or digit. Terms such as e-45 and ivf_flat stay whole with
# letters for these signs, which no term has: rag.terms makes plain letters of them.
_AS_LETTERS = str.maketrans("-_.'’", "ʰʱʲʳʴ")


def schema(dim: int, *, words: bool, partition_key: bool) -> CollectionSchema:
    """The fields of a collection; with `words`, also those of BM25 over them."""
    made = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    text = DataType.VARCHAR
    made.add_field("id", text, is_primary=True, max_length=_KEY_BYTES)
    made.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dim)
    for name in ("document_id", "version"):
        made.add_field(name, text, max_length=_KEY_BYTES)
    for name in ("source", "title"):
        made.add_field(name, text, max_length=_NAME_BYTES)
    for name in ("position", "page", "ingested_at"):
        made.add_field(name, DataType.INT64)
    long = {"max_length": 65_535}
    made.add_field("text", text, **long)
    made.add_field(MORE, DataType.ARRAY, element_type=text, max_capacity=_MORE, **long)
    if partition_key:
        made.add_field(PARTITION, text, is_partition_key=True, **long)
    if words:
        analyzer = {"tokenizer": "standard"}
        made.add_field(WORDS, text, enable_analyzer=True, analyzer_params=analyzer, **long)
        made.add_field(SPARSE, DataType.SPARSE_FLOAT_VECTOR)
        made.add_function(Function("bm25", FunctionType.BM25, [WORDS], [SPARSE]))
    return made


def indexes(kind: str, metric: str, params: dict[str, int], *, words: bool) -> Any:
    """The indexes of a collection, for `MilvusClient.create_index`."""
    made = MilvusClient.prepare_index_params()
    # The client takes `params` apart, but Lite reads nothing else: so it is given one within.
    made.add_index(VECTOR, kind, VECTOR, metric_type=metric, params={"params": params})
    if words:
        nested = {"params": {"bm25_k1": K1, "bm25_b": B}}
        made.add_index(SPARSE, "SPARSE_INVERTED_INDEX", SPARSE, metric_type="BM25", params=nested)
    return made


def to_row(chunk: Chunk, vector: Vectors, *, partition_key: str, words: bool) -> dict[str, Any]:
    """The row of a chunk. Raises InputError for what is longer than Milvus takes."""
    text, *more = _pieces(chunk.text)
    columns: dict[str, Any] = {
        "document_id": chunk.document_id,
        "version": chunk.version,
        "position": chunk.position,
        "source": chunk.source,
        "title": chunk.title,
        "page": MISSING if chunk.page is None else chunk.page,
        "ingested_at": chunk.ingested_at,
    }
    meta: dict[str, Any] = {
        dynamic_field(key, kind(value)): value for key, value in chunk.metadata.items()
    }
    meta[_RECORD] = [*columns.values(), len(more)]
    _check(chunk, len(more), meta)
    columns |= {"id": chunk.id, "text": text}
    if words:
        whole, *rest = _pieces(searchable(words_of(chunk)))
        columns[WORDS] = whole.rpartition(" ")[0] if rest else whole
    if partition_key:
        tenant = chunk.metadata.get(partition_key, "")
        columns[PARTITION] = tenant if isinstance(tenant, str) else ""
    return {**columns, VECTOR: vector, MORE: more, **meta}


def to_chunk(row: Mapping[str, Any], chunk_id: str, more: Iterable[str] = ()) -> Chunk:
    """The chunk that the row was made from."""
    document_id, version, position, source, title, page, ingested_at, pieces = row[_RECORD]
    text = "".join([row["text"], *more]) if pieces else row["text"]
    if page == MISSING:
        page = None
    metadata = {metadata_key(field): v for field, v in row.items() if field[1:2] == "_"}
    return Chunk(
        chunk_id, document_id, version, position, text, source, title, page, ingested_at, metadata
    )


def has_more(row: Mapping[str, Any]) -> bool:
    """Whether the text goes on in MORE."""
    return bool(row[_RECORD][-1])


def searchable(terms: Iterable[str]) -> str:
    """Terms of `rag.terms` as a text that Milvus splits into just these, in every version."""
    return " ".join(terms).translate(_AS_LETTERS)


def size(chunk: Chunk, dim: int) -> int:
    """At least the bytes of the chunk's row."""
    metadata = sum(len(key) + len(str(value)) for key, value in chunk.metadata.items())
    names = len(chunk.id) + len(chunk.source) + len(chunk.title)
    return 4 * dim + 8 * len(chunk.text) + 4 * (names + metadata) + 400


def _pieces(text: str) -> list[str]:
    if len(text) * 4 <= _TEXT_BYTES:  # no character has more bytes
        return [text]
    data, pieces = text.encode(), []
    while len(data) > _TEXT_BYTES:
        piece = data[:_TEXT_BYTES].decode(errors="ignore")
        pieces.append(piece)
        data = data[len(piece.encode()) :]
    return [*pieces, data.decode()]


def _check(chunk: Chunk, more: int, meta: dict[str, Any]) -> None:
    if more > _MORE:
        raise InputError(
            f"the text of chunk {chunk.id[:40]!r} is longer than Milvus takes",
            f"use up to {(_MORE + 1) * _TEXT_BYTES} bytes",
        )
    for name in ("id", "document_id", "version"):
        value = getattr(chunk, name)
        if len(value) * 4 > _KEY_BYTES and len(value.encode()) > _KEY_BYTES:
            raise InputError(
                f"the {name} {value[:40]!r}... is longer than Milvus takes",
                f"use up to {_KEY_BYTES} bytes",
            )
    if len(orjson.dumps(meta)) > _META_BYTES:
        raise InputError(
            f"source, title and metadata of chunk {chunk.id[:40]!r} are larger than Milvus takes",
            f"use up to {_META_BYTES} bytes of JSON in all",
        )
