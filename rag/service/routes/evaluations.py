"""Evaluations: how well searches find what they should."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from rag.errors import Forbidden, InputError, NotFound
from rag.service.access import Admin, DeskOf, Examiner
from rag.service.callers import Caller
from rag.service.datasets import has_corpus
from rag.service.desk import Desk
from rag.service.errors import responses
from rag.service.evaluation_schemas import (
    ComparedOut,
    DatasetOut,
    DatasetsOut,
    EvaluationIn,
    EvaluationOut,
    EvaluationsOut,
    EvaluationSummary,
)
from rag.service.evaluations import Evaluation
from rag.service.schemas import NAME

router = APIRouter(tags=["evaluations"])

_ID = "^[0-9a-f]{32}$"
EvaluationId = Annotated[str, Path(pattern=_ID)]


@router.get("/datasets", responses=responses())
async def datasets(desk: DeskOf, caller: Examiner) -> DatasetsOut:
    """The questions with judgements that there are to evaluate with."""
    listed = await asyncio.to_thread(desk.datasets.listed)
    return DatasetsOut(datasets=[DatasetOut(**asdict(dataset)) for dataset in listed])


@router.post("/evaluations", status_code=202, responses=responses(404))
async def evaluate(
    body: EvaluationIn, request: Request, desk: DeskOf, caller: Admin
) -> EvaluationOut:
    """Measure what `rag eval` measures; GET /evaluations/{id} tells how it goes, and what came.

    By the questions of a dataset, or by sentences of the documents themselves. With a dataset and a
    collection, documents are judged by the ends of their sources. With a dataset alone, its own
    documents are indexed into a collection, which is kept and reused.
    """
    from rag.evaluation import metrics

    collection = None
    if body.dataset is None or body.collection is not None:
        collection = request.state.collection = desk.collection(caller, body.collection, "admin")
        async with (
            desk.admission.within_deadline(),
            desk.admission.admitted(),
            desk.collections.using(collection),
        ):
            pass  # it is there
    elif caller.collections is not None:
        raise Forbidden(
            "this key is for some collections, and a dataset's documents get one of their own",
            "name a collection to ask the dataset's questions of",
        )
    if body.dataset is not None:
        folder = await asyncio.to_thread(desk.datasets.folder_of, body.dataset)
        if collection is None and not await asyncio.to_thread(has_corpus, folder):
            raise InputError(
                f"dataset {body.dataset!r} has no documents of its own",
                "name a collection to ask its questions of",
            )
    wanted = body.wanted(collection)
    await asyncio.to_thread(metrics.names, wanted.ks)  # raises MissingExtra before anybody waits
    return EvaluationOut.of(await asyncio.to_thread(desk.evaluations.add, wanted))


@router.get("/evaluations", responses=responses())
async def evaluations(
    desk: DeskOf,
    caller: Examiner,
    collection: Annotated[str | None, Query(pattern=NAME)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> EvaluationsOut:
    """The evaluations of the collections that the caller may see, without results, newest first."""
    if collection is not None:
        caller.require("read", collection)
    names = caller.collections if collection is None else [collection]
    newest = await asyncio.to_thread(desk.evaluations.newest, limit, names)
    return EvaluationsOut(evaluations=[EvaluationSummary(**one.to_json()) for one in newest])


@router.get("/evaluations/{evaluation_id}", responses=responses(404))
async def evaluation(
    evaluation_id: EvaluationId,
    desk: DeskOf,
    caller: Examiner,
    baseline: Annotated[
        str | None, Query(pattern=_ID, description="Another evaluation, to compare with.")
    ] = None,
) -> EvaluationOut:
    """An evaluation with its results."""
    found = await _seen(desk, caller, evaluation_id)
    if baseline is None:
        return EvaluationOut.of(found)
    earlier = await _seen(desk, caller, baseline)
    if not found.state == earlier.state == "done":
        return EvaluationOut.of(found)
    async with desk.admission.within_deadline(), desk.admission.admitted():
        comparison = await asyncio.to_thread(_compared, desk, baseline, evaluation_id)
    return EvaluationOut.of(found, comparison)


@router.delete("/evaluations/{evaluation_id}", status_code=204, responses=responses(404))
async def delete(evaluation_id: EvaluationId, desk: DeskOf, caller: Admin) -> None:
    """Forget an evaluation; one that runs is stopped. The collection of a dataset stays."""
    await _seen(desk, caller, evaluation_id)
    await asyncio.to_thread(desk.evaluations.delete, evaluation_id)


async def _seen(desk: Desk, caller: Caller, evaluation_id: str) -> Evaluation:
    """The evaluation. Raises NotFound, also for one of a collection that the caller may not see."""
    found = await asyncio.to_thread(desk.evaluations.get, evaluation_id)
    if caller.collections is not None and found.collection not in caller.collections:
        raise NotFound("there is no such evaluation", "see GET /evaluations")
    return found


def _compared(desk: Desk, baseline: str, now: str) -> dict[str, dict[str, ComparedOut]]:
    from rag.evaluation.compare import compare

    before, after = desk.evaluations.figures(baseline), desk.evaluations.figures(now)
    compared = {mode: compare(before[mode], after[mode]) for mode in after if mode in before}
    return {
        mode: {name: ComparedOut(**asdict(one)) for name, one in figures.items()}
        for mode, figures in compared.items()
        if figures
    }
