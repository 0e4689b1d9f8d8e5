"""The composition root: the only place that turns settings into objects."""

from __future__ import annotations

import copy as copying
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rag import plugins, swap
from rag.errors import (
    InputError,
    StoreError,
    UnknownCollection,
    UnknownDocument,
)
from rag.types import Answer, CollectionSpec, DocumentRecord, Sampling, Scalar, StoreInfo, Turn

if TYPE_CHECKING:
    from ingest.pipeline import Progress, Report
    from rag.answer import Answerer, Search
    from rag.breaker import Breaker
    from rag.evaluation.corpus import Corpus
    from rag.evaluation.judge import Judge
    from rag.evidence import Calibration
    from rag.filters import Filter
    from rag.fusion import Fusion
    from rag.protocols import Embedder, Generator, Reranker, StoreBackend, VectorStore
    from rag.retrieve import Retrieved, Retriever, SearchOptions
    from rag.settings import Settings
    from rag.templates import Templates
    from stores.copy import CopyReport


class App:
    """What the command line, the service and the chat page stand on."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
        """`say` gets a line when something slow happens that nobody asked for."""
        self.settings = settings
        self._say = say
        self._backends: dict[str, StoreBackend] = {}
        self._generating = threading.Lock()
        self._generators: list[Generator] = []  # one at most; those for other collections share it
        self._embedding = threading.Lock()  # its own: a model may be downloaded under it
        self._embedders: dict[str, Embedder] = {}

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

            for name in self.settings.stores:
                plugins.check("store", name)  # a misspelt section would be ignored in silence
            given = self.settings.stores.get(kind, {})
            make = plugins.load("store", kind)
            options = plugins.options(make, f"stores.{kind}", given, leave_out=("data_dir",))
            folder = self.settings.data_dir
            backend: StoreBackend = make(data_dir=folder, **options)
            self._backends[kind] = KeywordBackend(backend, folder / "keywords" / kind, self._say)
        return self._backends[kind]

    def of_collection(self, name: str) -> App:
        """The same for another collection; backends and models are shared."""
        same = copying.copy(self)
        same.settings = self.settings.model_copy(update={"collection": name})
        return same

    def of_corpus(
        self,
        corpus: Corpus,
        progress: Callable[[int, int], None] = lambda _done, _of: None,
        like: VectorStore | None = None,
    ) -> App:
        """The same for the collection of a dataset's corpus. See `rag.evaluation.target`."""
        from ingest.pipeline import Options
        from rag.evaluation.target import indexed

        settings = self.settings
        name = indexed(
            corpus,
            self.backend,
            self.embedder(),
            metric=settings.metric,
            options=Options(settings.ingest.chunk_tokens, settings.ingest.overlap_tokens),
            index=settings.stores.get(settings.store, {}).get("index", ""),
            like=like,
            say=self._say,
            progress=progress,
        )
        return self.of_collection(name)

    def close(self) -> None:
        """Free what the backends and the generator hold. The application may be used again."""
        for backend in self._backends.values():
            backend.close()
        while self._generators:
            close = getattr(self._generators.pop(), "close", None)
            if close:
                close()

    @contextmanager
    def store(self) -> Iterator[VectorStore]:
        """The collection that the settings name, closed at the end. Raises UnknownCollection."""
        store = swap.open_whole(self.backend, self.settings.collection)
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
        with self._embedding:
            known = repr((settings.kind, sorted(values.items())))
            if known not in self._embedders:  # collections share the model in memory
                self._embedders[known] = plugins.load("embedder", settings.kind)(
                    **values, models_dir=self.settings.models_dir, say=self._say
                )
            embedder = self._embedders[known]
        if info is not None and live is not None:
            from stores.checks import check_embedder

            asked = embedder.fingerprint
            check_embedder(info.collection, asked=asked, live=live, store=info.kind)
        elif info is not None and info.count:
            self._say(
                f"warning: collection {info.collection!r} does not say which embedder made it; "
                f"taking it for {values['model']}"
            )
        return embedder

    def ingest(
        self,
        paths: Sequence[Path],
        *,
        metadata: Mapping[str, Scalar],
        sources: Mapping[Path, str] = MappingProxyType({}),
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
            sources=sources,
            prune=prune,
            dry_run=dry_run,
        )
        try:
            store: VectorStore | None = swap.open_whole(self.backend, self.settings.collection)
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

    @contextmanager
    def retriever(self) -> Iterator[Retriever]:
        """What searches the collection: its embedder, and how its two legs are to be joined."""
        with self.store() as store:
            yield self.retriever_over(store, store.describe())

    def retriever_over(self, store: VectorStore, info: StoreInfo) -> Retriever:
        """The same over a collection that is open; `info` is what it says of itself."""
        from rag.retrieve import Retriever

        return Retriever(
            store,
            self.embedder(info),
            metric=info.metric,
            fusion=self._fusion(info),
            reranker=self._reranker,
            candidates=self.settings.rerank.candidates,
        )

    @cached_property
    def _reranker(self) -> Reranker | None:
        settings = self.settings.rerank
        if settings.kind == "none":
            return None
        values = {name: getattr(settings, name) for name in type(settings).model_fields}
        reranker: Reranker = plugins.load("reranker", settings.kind)(
            **values, models_dir=self.settings.models_dir, say=self._say
        )
        return reranker

    def _fusion(self, info: StoreInfo) -> Fusion:
        from rag.fusion import NOTE, Fusion

        try:
            return Fusion.from_json(info.notes.get(NOTE, "{}"))
        except ValueError:
            self._say(
                f"warning: what was learnt for collection {info.collection!r} cannot be read; "
                f"searched with the defaults (mend it with: rag tune, or rag tune --reset)"
            )
            return Fusion()

    def calibration(self, info: StoreInfo) -> Calibration:
        """How evidence is weighed in a collection: as `rag tune` learnt it, or by default."""
        from rag.evidence import NOTE, Calibration

        try:
            return Calibration.from_json(info.notes.get(NOTE, "{}"))
        except ValueError:
            self._say(
                f"warning: what was learnt about abstaining for collection {info.collection!r} "
                f"cannot be read; weighed with the defaults "
                f"(mend it with: rag tune, or rag tune --reset)"
            )
            return Calibration()

    def search_options(self, **asked: Any) -> SearchOptions:
        """How to search: the settings, and above them what is asked for and not None."""
        given = {name: value for name, value in asked.items() if value is not None}
        return replace(self._search_options, **given) if given else self._search_options

    @cached_property
    def _search_options(self) -> SearchOptions:
        from rag.retrieve import SearchOptions

        return SearchOptions(**dict(self.settings.search))

    def search(
        self,
        question: str,
        k: int,
        where: Filter | None = None,
        options: SearchOptions | None = None,
    ) -> Retrieved:
        """The `k` best passages for a question, best first."""
        with self.retriever() as retriever:
            return retriever.search(question, k, where, options or self.search_options())

    def ask(
        self,
        question: str,
        k: int,
        where: Filter | None = None,
        options: SearchOptions | None = None,
        history: Sequence[Turn] = (),
    ) -> Answer:
        """The answer to a question, whole. `history` has the earlier turns, the latest last."""
        with self.answerer(options) as answerer:
            return answerer.ask(question, k, where, history)

    @contextmanager
    def answerer(self, options: SearchOptions | None = None) -> Iterator[Answerer]:
        """What answers questions about the collection."""
        with self.retriever() as retriever:
            calibration = self.calibration(retriever.store.describe())
            yield self.answerer_over(retriever, calibration, options)

    def answerer_over(
        self,
        retriever: Retriever,
        calibration: Calibration,
        options: SearchOptions | None = None,
        sampling: Sampling | None = None,
        search: Search | None = None,
    ) -> Answerer:
        """The same over what searches a collection. See `rag.answer.Answerer`.

        More than `generator.max_tokens` are never asked for.
        """
        from rag.answer import Answerer
        from rag.generators.extractive import ExtractiveGenerator

        settings, chosen = self.settings.generator, self.settings.answer
        quotes = ExtractiveGenerator(embedder=retriever.embedder, sentences=chosen.sentences)
        tokens = settings.max_tokens
        if sampling and sampling.max_tokens:
            tokens = min(tokens, sampling.max_tokens)
            sampling = replace(sampling, max_tokens=tokens)
        return Answerer(
            retriever,
            self.generator or quotes,
            quotes,
            min_evidence=chosen.min_evidence,
            calibration=calibration,
            context_tokens=settings.context_tokens,
            answer_tokens=tokens,
            options=options or self.search_options(),
            templates=self.templates,
            rewrite=chosen.rewrite,
            concurrency=settings.concurrency,
            breaker=self.breaker,
            sampling=sampling,
            search=search,
        )

    @cached_property
    def templates(self) -> Templates:
        """The texts of the prompts. Raises ConfigError."""
        from rag.templates import Templates

        return Templates(self.settings.answer.templates)

    @property
    def generator(self) -> Generator | None:
        """The language model of the settings, made once; None where answers are quoted."""
        with self._generating:  # two threads would load it twice
            if not self._generators and (made := self._made_generator()):
                self._generators.append(made)
            return next(iter(self._generators), None)

    def _made_generator(self) -> Generator | None:
        settings = self.settings.generator
        kind = settings.kind
        if kind == "auto":
            kind = "openai" if settings.url else "extractive"
        if kind == "extractive":
            return None
        values = {name: getattr(settings, name) for name in type(settings).model_fields}
        generator: Generator = plugins.load("generator", kind)(
            **values, models_dir=self.settings.models_dir, say=self._say
        )
        return generator

    @cached_property
    def breaker(self) -> Breaker:
        """What keeps a generator from being asked that fails again and again."""
        from rag.breaker import Breaker

        settings = self.settings.generator
        return Breaker(settings.breaker_failures, settings.breaker_reset_s)

    def judge(self) -> Judge | None:
        """What judges answers, ready; None where no url is set. Raises InputError, ModelError."""
        from rag.evaluation.judge import Judge

        settings = self.settings.judge
        if not settings.url:
            if settings.model:
                raise InputError("the judge has no server", "add --judge-url URL, or set judge.url")
            return None
        values = {name: getattr(settings, name) for name in type(settings).model_fields}
        judge = Judge(**values, templates=self.templates)
        judge.check()
        return judge

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

        It is searched as it was until the new vectors are whole. See `rag.swap`.
        """
        if not model:
            raise InputError("no model is named", "add --model MODEL")
        return swap.reembed(self.backend, name, self.embedder(model=model), progress)

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

    def documents(self, containing: str = "", limit: int | None = None) -> list[DocumentRecord]:
        """A record for each version of each document of the collection, `limit` at most.

        With `containing` of those whose source or title contains it, whatever the case.
        """
        with self.store() as store:
            return list(store.documents(containing=containing, limit=limit))

    def find_document(self, name: str) -> DocumentRecord:
        """The document with that id, source path, or end of a source path.

        Raises UnknownDocument when there is none or more than one.
        """
        from rag.filters import parse

        absolute, end = str(Path(name).expanduser().absolute()), "/" + name.removeprefix("./")
        exact = {"$or": [{"document_id": name}, {"source": {"$in": [name, absolute]}}]}
        with self.store() as store:
            found = list(store.documents(parse(exact)))
            if not found:
                near = store.documents(containing=end)
                found = [record for record in near if record.source.endswith(end)]
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
