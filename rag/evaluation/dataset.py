"""Questions with judgements: those of a folder in BEIR's layout, or two files about a collection.

What is odd in the files is counted and told in `remarks`, because each such line moves the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rag.errors import InputError
from rag.evaluation.corpus import Corpus
from rag.evaluation.files import check_line, counted, lines, malformed, one_of, records
from rag.protocols import VectorStore
from rag.types import Chunk, Citation

_GRADES = 1_000

T = TypeVar("T")
Qrels = dict[str, dict[str, int]]
"""Grades: query id -> document id -> grade; a grade above 0 says that the document is relevant."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Questions and judgements. `queries` are those to ask: judged, and with a text.

    `qrels` has every query that is judged with a relevant document, asked or not; the figures are
    means over these. `by_path`: documents are judged by the ends of their source paths. `remarks`
    tell what was left out or counts as not found. `unanswerable` are questions apart: those that
    the queries' file says have no answer ("answerable": false, there or in "metadata").
    """

    name: str
    queries: Mapping[str, str]
    qrels: Qrels
    by_path: bool = False
    remarks: tuple[str, ...] = ()
    unanswerable: Mapping[str, str] = field(default_factory=dict)

    def limited(self, queries: int) -> Dataset:
        """So many of the queries, evenly spread."""
        some = dict(sample(list(self.queries.items()), queries))
        return replace(self, queries=some, qrels={query: self.qrels[query] for query in some})


def beir(corpus: Corpus, queries: Path | None = None, qrels: Path | None = None) -> Dataset:
    """The judged questions of the corpus' folder, or of the files given."""
    folder = corpus.path.parent
    dataset = read(
        corpus.name,
        queries or one_of(folder, "queries.jsonl", "queries.jsonl.gz"),
        qrels or one_of(folder, "qrels/test.tsv"),
    )
    unknown = sum(len(judged.keys() - corpus.ids) for judged in dataset.qrels.values())
    if unknown == sum(map(len, dataset.qrels.values())):
        raise InputError(
            f"{corpus.path} holds none of the judged documents", "name files that belong together"
        )
    return replace(dataset, remarks=(*corpus.remarks, *dataset.remarks, *_unknown(unknown)))


def judged_in(
    dataset: Dataset, store: VectorStore
) -> tuple[Dataset, Callable[[Chunk | Citation], str]]:
    """The dataset, checked against a collection, and what gives the id by which a chunk is judged.

    A judged path means the document whose source ends with it, at the boundary of a name. Raises
    InputError for one that means several.
    """
    if not dataset.by_path:
        return dataset, lambda chunk: chunk.document_id
    dataset, names = of_collection(dataset, (record.source for record in store.documents()))
    return dataset, lambda chunk: names.get(chunk.source, chunk.source)


def of_collection(dataset: Dataset, sources: Iterable[str]) -> tuple[Dataset, dict[str, str]]:
    """The dataset with one path for each document, and that of each judged source."""
    paths = {path for judged in dataset.qrels.values() for path in judged}
    found: dict[str, str] = {}
    for source in sources:
        parts = source.split("/")
        ends = {"/".join(parts[n:]) for n in range(len(parts))}
        for path in ends & paths:
            if path in found and found[path] != source:
                raise InputError(
                    f"the judged path {path!r} ends several sources, such as {source} and "
                    f"{found[path]}",
                    "write more of the path in the judgements",
                )
            found[path] = source
    names: dict[str, str] = {}
    for path in sorted(found, key=lambda path: (-len(path), path)):
        names.setdefault(found[path], path)
    qrels: Qrels = {}
    unknown = 0
    for query, judged in dataset.qrels.items():
        unknown += len(judged.keys() - found.keys())
        for path, grade in judged.items():
            name = names[found[path]] if path in found else path
            kept = qrels.setdefault(query, {})
            kept[name] = max(grade, kept.get(name, grade))
    if not found:
        raise InputError(
            "the collection holds none of the judged documents",
            "judge by the end of the source path, as in: rag documents list",
        )
    return replace(dataset, qrels=qrels, remarks=(*dataset.remarks, *_unknown(unknown))), names


def read(name: str, queries: Path, qrels: Path) -> Dataset:
    """The questions and judgements of two files, whatever the judged documents are."""
    judged, repeated = read_qrels(qrels)
    relevant = with_relevant(judged)
    texts: dict[str, str] = {}
    unanswerable: dict[str, str] = {}
    again = 0
    for number, record, query, text in records(queries):
        if query not in relevant and text.strip() and _unanswerable(record):
            unanswerable.setdefault(query, check_line(queries, number, text))
        if query in relevant and text.strip():
            check_line(queries, number, text)
        again += query in texts
        texts.setdefault(query, text)
    if not relevant:
        raise InputError(f"{qrels} judges no document relevant", "give some a grade above 0")
    asked = {query: text for query, text in texts.items() if query in relevant and text.strip()}
    if not asked:
        raise InputError(
            f"{qrels} judges none of the queries in {queries}", "name files that belong together"
        )
    remarks = counted(
        {
            "queries that repeat an id (the first counts)": again,
            "judgements given twice (the higher grade counts)": repeated,
            "queries without judgements (left out)": len(
                texts.keys() - judged.keys() - unanswerable.keys()
            ),
            "queries judged without a relevant document (left out)": len(
                judged.keys() - relevant.keys() - unanswerable.keys()
            ),
            f"judged queries without a text in {queries.name} (count as 0)": len(relevant)
            - len(asked),
        }
    )
    return Dataset(name, asked, relevant, remarks=remarks, unanswerable=unanswerable)


def sample(items: Sequence[T], n: int) -> list[T]:
    """`n` of the items, evenly spread: the same for the same items."""
    count = min(n, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def with_relevant(qrels: Qrels) -> Qrels:
    """The queries that are judged with a relevant document: the figures are means over these."""
    return {query: d for query, d in qrels.items() if any(grade > 0 for grade in d.values())}


def read_qrels(path: Path) -> tuple[Qrels, int]:
    """The grades of a file of three columns, and how many lines judge again what is judged."""
    qrels: Qrels = {}
    repeated = 0
    for number, line in lines(path):
        columns = line.split("\t")
        if len(columns) != 3 or not all(column.strip() for column in columns):
            malformed(path, number, "is not query, document and grade between tabs")
        query, document, score = columns
        try:
            grade = int(score)
        except ValueError as error:
            if number == 1:
                continue  # a header
            malformed(
                path, number, f"has the grade {score[:20]!r}, which is not a whole number", error
            )
        if abs(grade) > _GRADES:  # trec_eval takes memory for each, and overflows in silence
            malformed(path, number, f"has a grade that is not between -{_GRADES} and {_GRADES}")
        judged = qrels.setdefault(query, {})
        repeated += document in judged
        judged[document] = max(grade, judged.get(document, grade))
    if not qrels:
        raise InputError(f"{path} holds no judgements", "write query, document and grade in it")
    return qrels, repeated


def _unanswerable(record: Mapping[str, Any]) -> bool:
    metadata = record.get("metadata")
    held = metadata if isinstance(metadata, dict) else {}
    return record.get("answerable", held.get("answerable")) is False


def _unknown(count: int) -> tuple[str, ...]:
    return counted({"judgements that name an unknown document (count as not found)": count})
