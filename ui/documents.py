"""The documents of a collection: taken in, listed, searched, deleted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any
from zoneinfo import ZoneInfo

import streamlit as st

from rag import plugins
from ui import connection, state
from ui.choices import Choices
from ui.client import AWAY, Json, ServiceError
from ui.guard import guarded
from ui.markup import plain
from ui.passage import name_of

_PAGE = 25
_POLL_S = 0.7
_OVER = ("done", "failed")
_JOBS = "jobs"  # of this tab, by id: those that are not over are asked for again
_PLACES = "places"  # where the pages begin that were turned over
_PROGRESS = {"waiting": 0.05, "reading": 0.3, "writing": 0.7, "ended": 1.0}


def show(choices: Choices) -> None:
    """The part of the page."""
    say = state.say()
    st.title(say("documents.title"))
    may_write = "write" in state.service().scopes()
    if may_write:
        _add(choices.collection)
        _jobs()
    else:
        st.caption(say("documents.rights"))
    _list(choices.collection, may_write=may_write)


def _add(collection: str) -> None:
    say = state.say()
    limit = connection.current().max_upload_mb
    files = st.file_uploader(
        say("documents.add"),
        type=[suffix.removeprefix(".") for suffix in plugins.names("reader")],
        accept_multiple_files=True,
        max_upload_size=limit,
        help=say("documents.drop", mb=limit),
        key=f"files/{st.session_state.setdefault('uploads', 0)}",
    )
    if not files:
        return
    label = say("documents.start", count=len(files), collection=plain(collection))
    if not st.button(label, type="primary", icon=":material/upload:"):
        return
    for file in files:
        with st.spinner(plain(file.name)):
            try:
                _note(state.service().upload(collection, file.name, file))
            except ServiceError as error:
                if error.code in (*AWAY, "unauthenticated"):
                    raise
                _note(_refused(file.name, state.in_words(error)))
    st.session_state["uploads"] += 1  # another uploader, with nothing in it
    st.rerun()


def _refused(name: str, why: str) -> Json:
    """A file that the service would not take, as a job that failed."""
    return {
        "id": f"refused/{name}",
        "source": name,
        "state": "failed",
        "why": why,
        "kind": "ingest",
    }


def _known() -> dict[str, Json]:
    jobs: dict[str, Json] = st.session_state.setdefault(_JOBS, {})
    return jobs


def _note(job: Json) -> None:
    _known()[job["id"]] = job


def _jobs() -> None:
    if not _known():
        return
    going_on = any(job["state"] not in _OVER for job in _known().values())
    st.fragment(_progress, run_every=_POLL_S if going_on else None)()


@guarded
def _progress() -> None:
    """How far each file is. Once all are over, the page is shown anew, with the new list."""
    say, jobs = state.say(), _known()
    before = [job for job in jobs.values() if job["state"] not in _OVER]
    for job in before:
        try:
            _note(state.service().job(job["id"]))
        except ServiceError as error:
            if error.code == "not_found":
                del jobs[job["id"]]
    with st.container(border=True):
        st.markdown(f"**{say('documents.progress')}**")
        for job in jobs.values():
            _one(job)
        if st.button(say("documents.dismiss"), type="tertiary"):
            left = {name: job for name, job in jobs.items() if job["state"] not in _OVER}
            st.session_state[_JOBS] = left
            st.rerun()
    if before and all(job["state"] in _OVER for job in jobs.values()):
        st.rerun()


def _one(job: Json) -> None:
    name = plain(name_of(job["source"]))
    words = _in_words(job)
    if job["state"] == "failed":
        st.error(f"**{name}**: {words}", icon=":material/error:")
    elif job["state"] == "done":
        st.success(f"**{name}**: {words}", icon=":material/check_circle:")
    else:
        st.progress(_PROGRESS[job["stage"]], f"**{name}**: {words}")


def _in_words(job: Json) -> str:
    say = state.say()
    if job["state"] == "failed":
        return str(job.get("why") or say("documents.failed", why=plain(job["error"])))
    if job["state"] == "done":
        if job["kind"] == "delete":
            return say("documents.deleted")
        report = job["report"] or {}
        if report.get("files", {}).get("unchanged"):
            return say("documents.unchanged")
        return say("documents.done", chunks=job["chunks"])
    if job["stage"] == "writing":
        return say("documents.writing", chunks=job["chunks"])
    waits = f" ({plain(job['error'])})" if job["error"] else ""
    return say(f"documents.{job['stage']}") + waits


def _list(collection: str, *, may_write: bool) -> None:
    say = state.say()
    st.subheader(say("documents.list", collection=plain(collection)))
    search = st.text_input(
        say("documents.search"),
        help=say("documents.search_help"),
        icon=":material/search:",
        key="search",
        max_chars=200,
    )
    about = collection, search
    if st.session_state.get("listed") != about:  # the places are those of another list
        st.session_state["listed"], st.session_state[_PLACES] = about, [None]
    places: list[str | None] = st.session_state[_PLACES]
    try:
        records, following = state.service().documents(collection, search, places[-1], _PAGE)
    except ServiceError as error:
        if error.code != "unknown_collection":
            raise
        records, following = [], None
    if not records and len(places) == 1:
        st.caption(
            say("documents.none_found", search=plain(search)) if search else say("documents.none")
        )
        return
    _table(records, collection, may_write=may_write)
    _turn(places, following)


def _table(records: Sequence[Json], collection: str, *, may_write: bool) -> None:
    say = state.say()
    widths = [6, 2, 1.4, 1.4, 2.4, 1.8]
    heads = [say(f"documents.{name}") for name in ("name", "status", "chunks", "size", "date")]
    for column, head in zip(st.columns(widths), heads, strict=False):
        column.caption(head)
    for record in records:
        with st.container(key=f"document-{record['id']}-{record['version']}"):
            row = st.columns(widths, vertical_alignment="center")
        row[0].markdown(plain(_named(record)), help=plain(record["source"]))
        whole = record["complete"]
        row[1].badge(
            say("documents.whole" if whole else "documents.partial"),
            color="green" if whole else "orange",
        )
        row[2].text(f"{record['chunks']:,}")
        row[3].text(_size(record["size"]))
        row[4].text(dated(record["ingested_at"]))
        if may_write:
            with row[5]:
                _actions(record, collection)


def _actions(record: Json, collection: str) -> None:
    say = state.say()
    key = f"more/{record['id']}/{record['version']}"
    offered = {say("documents.delete"): "delete"}
    if record["size"] is not None:
        offered = {say("documents.reingest"): "reingest", **offered}
    picked = st.menu_button(
        say("documents.actions"),
        list(offered),
        key=key,
        type="tertiary",
        help=say("documents.more", name=plain(_named(record))),
    )
    if picked is None:
        return
    if offered[picked] == "delete":
        st.dialog(say("documents.delete_title"))(_confirm)(record, collection)
    else:
        _act(lambda: state.service().ingest(collection, record["id"]))


@guarded
def _confirm(record: Json, collection: str) -> None:
    say = state.say()
    st.markdown(say("documents.delete_text", name=f"**{plain(_named(record))}**"))
    with st.container(horizontal=True):
        if st.button(say("documents.delete_yes"), type="primary", icon=":material/delete:"):
            _act(lambda: state.service().delete(collection, record["id"]))
        if st.button(say("documents.delete_no")):
            st.rerun()


def _act(begin: Any) -> None:
    """Begin a job, and show the page anew with it."""
    try:
        _note(begin())
    except ServiceError as error:
        if error.code in (*AWAY, "unauthenticated"):
            raise
        st.error(state.in_words(error), icon=":material/error:")
        return
    st.rerun()


def _turn(places: list[str | None], following: str | None) -> None:
    say = state.say()
    if len(places) == 1 and following is None:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            say("documents.previous"),
            disabled=len(places) == 1,
            key="previous",
            on_click=lambda: places.__delitem__(-1),
        )
        st.text(say("documents.place", page=len(places)))
        st.button(
            say("documents.next"),
            disabled=following is None,
            key="next",
            on_click=places.append,
            args=(following,),
        )


def _named(record: Json) -> str:
    """Its file's name, and its title where that says something else."""
    name, title = name_of(record["source"]), record["title"]
    named = f"{name} – {title}" if title and title not in (name, PurePath(name).stem) else name
    folder = PurePath(record["source"]).parent.name  # they are in the order of their paths
    return named if folder in ("", "upload") or "=" in folder else f"{folder}/{named}"


def _size(size: int | None) -> str:
    if size is None:
        return "–"
    amount = float(size)
    for unit in ("B", "KB", "MB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GB"


def dated(at: int, *, seconds: bool = False) -> str:
    """Seconds since 1970 as a date and time, in the time zone of who looks at it."""
    zone = ZoneInfo(st.context.timezone) if st.context.timezone else UTC
    form = "%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M"
    return datetime.fromtimestamp(at, zone).strftime(form)
