"""The composition root: the only place that turns settings into objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag import plugins
from rag.errors import InputError, StoreError, UnknownCollection, UnknownDocument
from rag.types import Answer, CollectionSpec, DocumentRecord, Hit, Scalar, StoreInfo

if TYPE_CHECKING:
    from ingest.pipeline import Progress, Report
    from rag.answer import Answerer
    from rag.filters import Filter
    from rag.protocols import Embedder, Generator, StoreBackend, VectorStore
    from rag.settings import Settings
    from stores.copy import CopyReport


class App:
    """What the command line, the service and the chat page stand on."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
        """`say` gets a line when something slow happens that nobody asked for."""
        self.settings = settings
        self._say = say
        self._backends: dict[str, StoreBackend] = {}

    @property
    def backend(self) -> StoreBackend:
        """The kind of store that the settings name."""
        return self.backend_of(self.settings.store)

    def backend_of(self, kind: str) -> StoreBackend:
        """A kind of store, with its settings from `[stores.KIND]`; connected once.

        Its collections have keyword search: their own, or that of `stores.sidecar`.
        """
        if kind not in self._backends:
            from stores.sidecar import KeywordBackend

            given = self.settings.stores.get(kind, {})
            make = plugins.load("store", kind)
            options = plugins.options(make, f"stores.{kind}", given, leave_out=("data_dir",))
            folder = self.settings.data_dir
            backend: StoreBackend = make(data_dir=folder, **options)
            self._backends[kind] = KeywordBackend(backend, folder / "keywords" / kind, self._say)
        return self._backends[kind]

    def close(self) -> None:
        """Free what the backends hold. The application may be used again."""
        for backend in self._backends.values():
            backend.close()

    @contextmanager
    def store(self) -> Iterator[VectorStore]:
        """The collection that the settings name, closed at the end. Raises UnknownCollection."""
        store = self.backend.open(self.settings.collection)
        try:
            yield store
        finally:
            store.close()

    def embedder(self, info: StoreInfo | None = None, model: str = "") -> Embedder:
        """The embedder of the settings; for a collection, checked against its fingerprint.

        `model` stands in for the model of the settings.

        Precision "auto" is the collection's, so that a collection can move between machines.
        Raises EmbedderMismatch.
        """
        settings = self.settings.embedder
        live = info.embedder if info else None
        values = {name: getattr(settings, name) for name in type(settings).model_fields}
        values["model"] = model or settings.model
        if live and settings.precision == "auto" and live.precision in ("float32", "bfloat16"):
            values["precision"] = live.precision
        embedder: Embedder = plugins.load("embedder", settings.kind)(
            **values, models_dir=self.settings.models_dir, say=self._say
        )
        if info is not None and live is not None:
            from stores.checks import check_embedder

            check_embedder(info.collection, asked=embedder.fingerprint, live=live)
        return embedder

    def ingest(
        self,
        paths: Sequence[Path],
        *,
        metadata: Mapping[str, Scalar],
        prune: bool = False,
        dry_run: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> Report:
        """Make the collection hold what the files under `paths` hold. See `ingest.pipeline`."""
        from ingest.pipeline import Options, ingest
        from ingest.read import Limits
        from ingest.walk import walk

        walk(paths)  # a path that is not there must not leave an empty collection behind
        chosen = self.settings.ingest
        options = Options(
            tokens=chosen.chunk_tokens,
            overlap=chosen.overlap_tokens,
            limits=Limits(
                file_mb=chosen.max_file_mb,
                seconds=chosen.parse_seconds,
                memory_mb=chosen.parse_memory_mb,
                workers=chosen.workers,
            ),
            metadata=metadata,
            prune=prune,
            dry_run=dry_run,
        )
        try:
            store: VectorStore | None = self.backend.open(self.settings.collection)
        except UnknownCollection:
            store = None
        embedder = self.embedder(store.describe() if store else None)
        if store is None and not dry_run:
            made_by = embedder.fingerprint
            metric = self.settings.metric
            store = self.backend.create(
                CollectionSpec(self.settings.collection, made_by.dim, metric, embedder=made_by)
            )
        try:
            return ingest(paths, store=store, embedder=embedder, options=options, progress=progress)
        finally:
            if store is not None:
                store.close()

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        """The `k` best passages for a question, best first."""
        from rag.retrieve import Retriever

        with self.store() as store:
            return Retriever(store, self.embedder(store.describe())).search(question, k, where)

    def ask(self, question: str, k: int, where: Filter | None = None) -> Answer:
        """The answer to a question, whole."""
        with self.answerer() as answerer:
            return answerer.ask(question, k, where)

    @contextmanager
    def answerer(self) -> Iterator[Answerer]:
        """What answers questions about the collection."""
        from rag.answer import Answerer
        from rag.retrieve import Retriever

        with self.store() as store:
            embedder = self.embedder(store.describe())
            fallback = self._generator("extractive", embedder)
            kind = self.settings.generator.kind
            if kind == "auto":
                kind = "openai" if self.settings.generator.url else "extractive"
            yield Answerer(
                Retriever(store, embedder),
                fallback if kind == "extractive" else self._generator(kind, embedder),
                fallback,
                min_evidence=self.settings.answer.min_evidence,
                context_tokens=self.settings.generator.context_tokens,
                answer_tokens=self.settings.generator.max_tokens,
            )

    def copy(
        self,
        name: str,
        to: str,
        from_store: str,
        to_store: str,
        progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> CopyReport:
        """Copy a collection into another store, or under another name. See `stores.copy`."""
        from stores.copy import copy

        if (name, from_store) == (to, to_store):
            raise InputError("a collection cannot be copied onto itself", "name another")
        with closing(self.backend_of(from_store).open(name)) as source:
            info = source.describe()
            spec = CollectionSpec(to, info.dim, info.metric, info.embedder)
            with closing(self.backend_of(to_store).create(spec)) as target:
                return copy(source, target, lambda done: progress(done, info.count))

    def reembed(
        self,
        name: str,
        model: str,
        progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> int:
        """Give a collection the vectors of another model; returns how many chunks were embedded.

        It is searched as it was until the new vectors are whole. See `ingest.reembed`.
        """
        from ingest.reembed import reembed

        backend, shadow_name = self.backend, f"{name[:55]}--next"
        with closing(backend.open(name)) as source:
            info = source.describe()
            embedder = self.embedder(model=model)
            made_by = embedder.fingerprint
            spec = CollectionSpec(shadow_name, made_by.dim, info.metric, made_by)
            try:
                shadow = backend.create(spec)
            except StoreError:  # what an earlier run left has other vectors
                backend.drop(shadow_name)
                shadow = backend.create(spec)
            with closing(shadow):
                embedded = reembed(source, shadow, embedder, progress)
        backend.replace(name, by=shadow_name)
        return embedded

    def collections(self) -> list[StoreInfo]:
        """What every collection of the store says of itself; of a damaged one, a line is said."""
        found = []
        for name in self.backend.collections():
            try:
                store = self.backend.open(name)
                found.append(store.describe())
                store.close()
            except StoreError as error:
                self._say(f"collection {name!r}: {error}")
        return found

    def documents(self) -> list[DocumentRecord]:
        """A record for each document of the collection, the version that is whole."""
        with self.store() as store:
            return list(store.documents())

    def find_document(self, name: str) -> DocumentRecord:
        """The document with that id, source path, or end of a source path.

        Raises UnknownDocument when there is none or more than one.
        """
        records = self.documents()
        absolute = str(Path(name).expanduser().absolute())
        exact = [r for r in records if name == r.id or r.source in (name, absolute)]
        found = exact or [r for r in records if r.source.endswith("/" + name.lstrip("./"))]
        if not found:
            raise UnknownDocument(
                f"collection {self.settings.collection!r} holds no document {name!r}",
                "see: rag documents list",
            )
        if len({record.id for record in found}) > 1:
            raise UnknownDocument(
                f"{name!r} ends {len(found)} sources", "give the whole path or the id"
            )
        return found[-1]

    def _generator(self, kind: str, embedder: Embedder) -> Generator:
        settings = self.settings.generator
        values: dict[str, Any] = {n: getattr(settings, n) for n in type(settings).model_fields}
        generator: Generator = plugins.load("generator", kind)(
            **values, embedder=embedder, sentences=self.settings.answer.sentences
        )
        return generator
