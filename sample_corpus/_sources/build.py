"""Build the PDF and DOCX files of the sample corpus and its evaluation set.

Run from anywhere, with reportlab, python-docx, pypdf and pypdfium2 installed::

    python sample_corpus/_sources/build.py            # write the documents and eval/
    python sample_corpus/_sources/build.py --check    # verify what has been written

The sources are the ``*.md`` files beside this script: a small dialect of Markdown with a front
matter (``output``, ``title``, ``author``, ``subject``), headings, paragraphs, flat lists, pipe
tables and ``\\newpage``. HTML, Markdown and text documents of the corpus have no source here;
they are edited in place. ``questions.tsv`` holds the questions, one a line:

    lang <TAB> kind <TAB> documents, comma separated <TAB> answers, "|" separated <TAB> question

The first answer occurs literally in a relevant document; each relevant document has one of them.
A line without documents and answers is an unanswerable question. Everything written is
deterministic: the same sources and library versions give the same bytes.

Chinese text in PDF files is set in Droid Sans Fallback (Apache-2.0), of which the PDF embeds the
characters that it uses: ``apt-get install fonts-droid-fallback``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import docx
import pypdf
import pypdfium2
from docx.enum.text import WD_BREAK
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Pt
from docx.table import Table as DocxTable
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    ListFlowable,
    ListItem,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

SOURCES = Path(__file__).resolve().parent
CORPUS = SOURCES.parent
EVAL = CORPUS / "eval"
SUFFIXES = {".pdf", ".docx", ".html", ".md", ".txt"}
KINDS = {"fact", "procedure", "comparison", "table", "cross-lingual"}

CJK_FONT = "DroidSansFallback"
CJK_FONT_FILE = Path("/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf")
CJK = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
# Chinese closing punctuation: comma, full stop, semicolon, colon, and so on.
NO_LINE_START = "\uff0c\u3002\uff1b\uff1a\u3001\uff09\uff01\uff1f"
CELL_PADDING = 13.0
INK = colors.HexColor("#17303a")
RULE = colors.HexColor("#b9c6c9")
SHADE = colors.HexColor("#e8eeee")
FIXED_DATE = datetime(2025, 5, 30, 9, 0, 0)


# --------------------------------------------------------------------------------- sources


@dataclass
class Block:
    """One block of a source: kind is h1, h2, h3, p, ul, ol, table or newpage."""

    kind: str
    text: str = ""
    items: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """Return the front matter as a flat mapping, and the body."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        return {}, text
    pairs = (line.split(":", 1) for line in match[1].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}, text[match.end() :]


def parse_blocks(body: str) -> list[Block]:
    """Parse the body of a source. Blocks are separated by blank lines."""
    blocks: list[Block] = []
    for chunk in re.split(r"\n\s*\n", body.strip()):
        lines = [line.strip() for line in chunk.splitlines()]
        heading = re.match(r"(#{1,3}) (.+)", lines[0])
        if heading:
            blocks.append(Block(f"h{len(heading[1])}", heading[2]))
            if lines[1:]:
                blocks += parse_blocks("\n".join(lines[1:]))
        elif lines[0] == r"\newpage":
            blocks.append(Block("newpage"))
        elif lines[0].startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            blocks.append(Block("table", rows=[rows[0], *rows[2:]]))
        elif lines[0].startswith("- "):
            blocks.append(Block("ul", items=[line.removeprefix("- ") for line in lines]))
        elif re.match(r"\d+\. ", lines[0]):
            items = [re.sub(r"^\d+\. ", "", line) for line in lines]
            blocks.append(Block("ol", items=items))
        else:
            blocks.append(Block("p", " ".join(lines)))
    return blocks


def inline(text: str) -> Iterator[tuple[str, str]]:
    """Split text into (style, text) runs; style is "b", "i" or ""."""
    for part in re.split(r"(\*\*.+?\*\*|\*.+?\*)", text):
        if part.startswith("**"):
            yield "b", part.strip("*")
        elif part.startswith("*"):
            yield "i", part.strip("*")
        elif part:
            yield "", part


# ------------------------------------------------------------------------------------- PDF


def pdf_style(name: str, size: float, **options: Any) -> ParagraphStyle:
    base: dict[str, Any] = {"fontName": "Helvetica", "leading": size * 1.45, "textColor": INK}
    return ParagraphStyle(name, fontSize=size, **(base | options))


STYLES = {
    "h1": pdf_style("h1", 20, fontName="Helvetica-Bold", spaceAfter=10, leading=25),
    "h2": pdf_style("h2", 13.5, fontName="Helvetica-Bold", spaceBefore=13, spaceAfter=5),
    "h3": pdf_style("h3", 11, fontName="Helvetica-Bold", spaceBefore=9, spaceAfter=3),
    "p": pdf_style("p", 11, spaceAfter=7),
    "cell": pdf_style("cell", 10, leading=13.5),
    "head": pdf_style("head", 10, leading=13.5, fontName="Helvetica-Bold"),
}
for _style in STYLES.values():
    _style.keepWithNext = _style.name in {"h1", "h2", "h3"}


def wrap_cjk(text: str, style: ParagraphStyle, width: float) -> str:
    """Break lines by hand, so that codes and figures inside Chinese text stay in one piece."""
    lines: list[str] = [""]
    used = 0.0
    for token in re.findall(rf"{CJK}|\s+|(?:(?!{CJK})\S)+", re.sub(r"\*", "", text)):
        chinese = re.match(CJK, token) is not None
        font = CJK_FONT if chinese else style.fontName
        size = pdfmetrics.stringWidth(token, font, style.fontSize)
        # One character is kept free, so that closing punctuation may hang at the end of a line.
        if used + size > width - style.fontSize and token not in NO_LINE_START:
            lines.append("")
            used = 0.0
        used += size
        lines[-1] += f'<font name="{CJK_FONT}">{token}</font>' if chinese else escape(token)
    return "<br/>".join(line.strip() for line in lines)


def pdf_paragraph(text: str, style: ParagraphStyle, width: float) -> Paragraph:
    if re.search(CJK, text):
        return Paragraph(wrap_cjk(text, style, width), style)
    runs = (f"<{tag}>{escape(run)}</{tag}>" if tag else escape(run) for tag, run in inline(text))
    return Paragraph("".join(runs), style)


def text_width(text: str, style: ParagraphStyle) -> float:
    """Return the width of text on one line, with Chinese characters in the Chinese font."""
    parts = re.split(rf"({CJK}+)", text)
    fonts = [CJK_FONT if n % 2 else style.fontName for n in range(len(parts))]
    widths = map(pdfmetrics.stringWidth, parts, fonts, [style.fontSize] * len(parts))
    return float(sum(widths))


def column_widths(rows: list[list[str]], width: float) -> list[float]:
    """Give each column room for its longest word, and share the rest out by length of text.

    No column asks for more than six tenths of the width, so that short ones need not wrap.
    """
    style = STYLES["head"]
    columns = list(zip(*rows, strict=True))
    words = [[word for cell in column for word in cell.split()] for column in columns]
    least = [max(text_width(word, style) for word in column) + CELL_PADDING for column in words]
    whole = [max(text_width(cell, style) for cell in col) + CELL_PADDING for col in columns]
    whole = [max(low, min(high, 0.6 * width)) for low, high in zip(least, whole, strict=True)]
    if sum(whole) <= width:
        return [w * width / sum(whole) for w in whole]
    share = (width - sum(least)) / (sum(whole) - sum(least))
    return [low + share * (high - low) for low, high in zip(least, whole, strict=True)]


def pdf_table(rows: list[list[str]], width: float) -> Table:
    """Lay out a table with a shaded header row."""
    widths = column_widths(rows, width)
    cells = [
        [
            pdf_paragraph(cell, STYLES["head" if n == 0 else "cell"], widths[i] - CELL_PADDING + 1)
            for i, cell in enumerate(row)
        ]
        for n, row in enumerate(rows)
    ]
    table = Table(cells, colWidths=widths, repeatRows=1, spaceBefore=4, spaceAfter=10)
    table.setStyle(
        TableStyle(
            [
                ("BACKGROUND", (0, 0), (-1, 0), SHADE),
                ("LINEBELOW", (0, 0), (-1, -1), 0.5, RULE),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("TOPPADDING", (0, 0), (-1, -1), 3),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 4),
            ]
        )
    )
    return table


def pdf_flowables(blocks: list[Block], width: float) -> list[Flowable]:
    story: list[Flowable] = []
    for block in blocks:
        if block.kind == "newpage":
            story.append(PageBreak())
        elif block.kind == "table":
            story.append(pdf_table(block.rows, width))
        elif block.kind in {"ul", "ol"}:
            style = STYLES["p"].clone("item", spaceAfter=3)
            items = [ListItem(pdf_paragraph(t, style, width - 18)) for t in block.items]
            marker = (
                {"bulletType": "1", "bulletFormat": "%s."}
                if block.kind == "ol"
                else {
                    "bulletType": "bullet",
                    "start": "\u2013",
                }
            )
            story.append(ListFlowable(items, leftIndent=18, bulletFontSize=11, **marker))
            story.append(Spacer(1, 5))
        else:
            story.append(pdf_paragraph(block.text, STYLES[block.kind], width))
    return story


def build_pdf(meta: dict[str, str], blocks: list[Block], target: Path) -> None:
    """Write a PDF with page footers, fixed dates and the title in its metadata."""

    def footer(canvas: Any, _doc: Any) -> None:
        canvas.saveState()
        canvas.setFillColor(INK)
        canvas.setFont("Helvetica", 8)
        canvas.drawString(24 * mm, 13 * mm, "Tarnwick Instruments")
        canvas.drawRightString(A4[0] - 24 * mm, 13 * mm, f"Page {canvas.getPageNumber()}")
        canvas.restoreState()

    document = BaseDocTemplate(
        str(target),
        pagesize=A4,
        leftMargin=24 * mm,
        rightMargin=24 * mm,
        topMargin=22 * mm,
        bottomMargin=22 * mm,
        title=meta["title"],
        author=meta["author"],
        subject=meta["subject"],
        invariant=1,
    )
    frame = Frame(
        document.leftMargin,
        document.bottomMargin,
        document.width,
        document.height,
        leftPadding=0,
        rightPadding=0,
    )
    document.addPageTemplates(PageTemplate("page", [frame], onPageEnd=footer))
    document.build(pdf_flowables(blocks, document.width))


# ------------------------------------------------------------------------------------ DOCX


def restart_numbering(document: Any) -> int:
    """Add a numbering instance that starts at 1 again, and return its number."""
    style = document.styles["List Number"]
    numbering = document.part.numbering_part.element
    base = numbering.num_having_numId(style.element.pPr.numPr.numId.val)
    number = numbering.add_num(base.abstractNumId.val)
    number.add_lvlOverride(ilvl=0).add_startOverride(1)
    return int(number.numId)


def add_runs(paragraph: Any, text: str) -> None:
    for tag, part in inline(text):
        run = paragraph.add_run(part)
        run.bold = tag == "b" or None
        run.italic = tag == "i" or None


def freeze_zip(data: bytes) -> bytes:
    """Repack a zip archive with one fixed time stamp for all members."""
    frozen = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(frozen, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o600 << 16
            target.writestr(info, source.read(name))
    return frozen.getvalue()


def build_docx(meta: dict[str, str], blocks: list[Block], target: Path) -> None:
    """Write a DOCX with built-in styles, real lists and fixed core properties."""
    document = docx.Document()
    normal = document.styles["Normal"]
    normal.font.name = "Calibri"
    normal.font.size = Pt(11)
    for style in document.styles:
        fonts = style.element.find(f"{qn('w:rPr')}/{qn('w:rFonts')}")
        if fonts is not None:
            fonts.attrib.pop(qn("w:eastAsiaTheme"), None)
            fonts.set(qn("w:eastAsia"), "SimSun")
    core = document.core_properties
    core.title, core.author, core.subject = meta["title"], meta["author"], meta["subject"]
    core.comments, core.last_modified_by, core.revision = "", meta["author"], 1
    core.created = core.modified = FIXED_DATE
    for block in blocks:
        if block.kind == "table":
            table = document.add_table(rows=0, cols=len(block.rows[0]), style="Light Grid Accent 1")
            for row in block.rows:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    add_runs(cell.paragraphs[0], text)
            header = table.rows[0]._tr.get_or_add_trPr()
            header.append(OxmlElement("w:tblHeader"))
            document.add_paragraph()
        elif block.kind == "ul":
            for text in block.items:
                add_runs(document.add_paragraph(style="List Bullet"), text)
        elif block.kind == "ol":
            number = restart_numbering(document)
            for text in block.items:
                paragraph = document.add_paragraph(style="List Number")
                properties = paragraph._p.get_or_add_pPr().get_or_add_numPr()
                properties.get_or_add_ilvl().val = 0
                properties.get_or_add_numId().val = number
                add_runs(paragraph, text)
        elif block.kind == "newpage":
            document.add_paragraph().add_run().add_break(WD_BREAK.PAGE)
        elif block.kind == "p":
            add_runs(document.add_paragraph(), block.text)
        else:
            document.add_heading(block.text, level=int(block.kind[1]))
    buffer = io.BytesIO()
    document.save(buffer)
    target.write_bytes(freeze_zip(buffer.getvalue()))


# -------------------------------------------------------------------------- plain text


class HtmlText(HTMLParser):
    """Collect the title and the readable text of a page, without its furniture."""

    SKIPPED: ClassVar = {"nav", "header", "footer", "script", "style", "head"}
    INLINE: ClassVar = {"a", "b", "i", "em", "strong", "code", "span"}

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.parts: list[str] = []
        self._skipping = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipping += tag in self.SKIPPED
        self._in_title = tag == "title"
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        self._skipping -= tag in self.SKIPPED
        self._in_title = False
        self._separate(tag)

    def _separate(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self.parts.append(" ")
        elif tag not in self.INLINE:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._skipping:
            self.parts.append(re.sub(r"\s+", " ", data))

    def text(self) -> str:
        lines = (re.sub(r" +", " ", line).strip() for line in "".join(self.parts).splitlines())
        return "\n".join(line for line in lines if line)


def read_html(path: Path) -> HtmlText:
    parser = HtmlText()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def pdf_text_pypdf(path: Path) -> str:
    return "\n\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)


def pdf_text_pdfium(path: Path) -> str:
    document = pypdfium2.PdfDocument(path)
    try:
        pages = [page.get_textpage().get_text_range() for page in document]
    finally:
        document.close()
    return "\n\n".join(pages)


def docx_text(path: Path) -> str:
    lines: list[str] = []
    for item in docx.Document(str(path)).iter_inner_content():
        if isinstance(item, DocxTable):
            lines += ["\t".join(cell.text for cell in row.cells) for row in item.rows]
        elif item.text.strip():
            lines.append(item.text)
    return "\n".join(lines)


def markdown_text(path: Path) -> str:
    return split_front_matter(path.read_text(encoding="utf-8"))[1].strip()


# All the ways in which the text of each format is read; the first one is used for the corpus.
READERS: dict[str, list[Callable[[Path], str]]] = {
    ".pdf": [pdf_text_pypdf, pdf_text_pdfium],
    ".docx": [docx_text],
    ".html": [lambda path: read_html(path).text()],
    ".md": [markdown_text],
    ".txt": [lambda path: path.read_text(encoding="utf-8").strip()],
}


def title_of(path: Path, text: str) -> str:
    if path.suffix == ".pdf":
        metadata = pypdf.PdfReader(path).metadata
        return str(metadata.title) if metadata else ""
    if path.suffix == ".docx":
        return str(docx.Document(str(path)).core_properties.title)
    if path.suffix == ".html":
        return read_html(path).title.strip()
    return text.splitlines()[0].lstrip("# ")


def documents() -> dict[str, Path]:
    """Return the documents of the corpus by their identifier, the relative path."""
    found: dict[str, Path] = {}
    for path in sorted(CORPUS.rglob("*")):
        relative = path.relative_to(CORPUS)
        hidden = any(part[0] in "_." for part in relative.parts)
        if path.is_file() and path.suffix in SUFFIXES and not hidden:
            found[relative.as_posix()] = path
    return found


# -------------------------------------------------------------------------- evaluation set


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def build_eval() -> None:
    """Write corpus.jsonl, queries.jsonl and qrels/test.tsv."""
    corpus = []
    for name, path in documents().items():
        text = READERS[path.suffix][0](path)
        corpus.append({"_id": name, "title": title_of(path, text), "text": text})
    queries: list[dict[str, Any]] = []
    qrels = ["query-id\tcorpus-id\tscore"]
    with (SOURCES / "questions.tsv").open(encoding="utf-8", newline="") as handle:
        reader = csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [row for row in reader if row and not row[0].startswith("#")]
    for number, (lang, kind, relevant, answers, question) in enumerate(rows, start=1):
        identifier = f"q{number:03d}"
        metadata = {
            "lang": lang,
            "answers": answers.split("|") if answers else [],
            "answerable": bool(answers),
            "kind": kind,
        }
        queries.append({"_id": identifier, "text": question, "metadata": metadata})
        qrels += [f"{identifier}\t{name}\t1" for name in relevant.split(",") if name]
    (EVAL / "qrels").mkdir(parents=True, exist_ok=True)
    write_jsonl(EVAL / "corpus.jsonl", corpus)
    write_jsonl(EVAL / "queries.jsonl", queries)
    qrels_text = "\n".join(qrels) + "\n"
    (EVAL / "qrels" / "test.tsv").write_text(qrels_text, encoding="utf-8", newline="\n")


def build() -> None:
    pdfmetrics.registerFont(TTFont(CJK_FONT, str(CJK_FONT_FILE)))
    for source in sorted(SOURCES.glob("*.md")):
        meta, body = split_front_matter(source.read_text(encoding="utf-8"))
        target = CORPUS / meta["output"]
        target.parent.mkdir(parents=True, exist_ok=True)
        builder = build_pdf if target.suffix == ".pdf" else build_docx
        builder(meta, parse_blocks(body), target)
        print(f"wrote {meta['output']}")
    build_eval()
    print("wrote eval/")


# ----------------------------------------------------------------------------------- check


def collapse(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def check_corpus(texts: dict[str, list[str]]) -> Iterator[str]:
    """Compare corpus.jsonl with the documents."""
    corpus = {row["_id"]: row for row in read_jsonl(EVAL / "corpus.jsonl")}
    if list(corpus) != list(texts):
        yield "corpus.jsonl does not list exactly the documents of the corpus"
    for name, row in corpus.items():
        if name in texts and collapse(row["text"]) != texts[name][0]:
            yield f"{name}: text in corpus.jsonl is out of date"
        if not row["title"]:
            yield f"{name}: no title"


def check_qrels(qrels: list[tuple[str, str]], queries: set[str], names: set[str]) -> Iterator[str]:
    """Check that judgements refer to things that exist, and that documents have questions."""
    for query, name in qrels:
        if query not in queries or name not in names:
            yield f"qrels: unknown query or document in {query} {name}"
    per_document = Counter(name for _, name in qrels)
    for name in sorted(names):
        if per_document[name] < 3:
            yield f"{name}: only {per_document[name]} questions"


def check_query(row: dict[str, Any], found: dict[str, list[str]]) -> Iterator[str]:
    """Check one query against the texts of its relevant documents, by every reader."""
    identifier, meta = row["_id"], row["metadata"]
    answers = meta["answers"]
    if meta["lang"] not in {"en", "zh"} or meta["kind"] not in KINDS:
        yield f"{identifier}: unknown language or kind"
    if not meta["answerable"] == bool(answers) == bool(found):
        yield f"{identifier}: answers, qrels and answerable do not agree"
    if len(found) > 3:
        yield f"{identifier}: more than three relevant documents"
    for name, texts in found.items():
        if not all(any(answer in text for answer in answers) for text in texts):
            yield f"{identifier}: no answer in {name}"
    if answers and not any(answers[0] in text for texts in found.values() for text in texts):
        yield f"{identifier}: {answers[0]!r} is in no relevant document"


def check() -> list[str]:
    """Return the list of problems found in the evaluation set, and print its counts."""
    texts = {
        name: [collapse(read(path)) for read in READERS[path.suffix]]
        for name, path in documents().items()
    }
    queries = {row["_id"]: row for row in read_jsonl(EVAL / "queries.jsonl")}
    header, *lines = (EVAL / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    qrels = [(line.split("\t")[0], line.split("\t")[1]) for line in lines]
    problems = [*check_corpus(texts), *check_qrels(qrels, set(queries), set(texts))]
    if header != "query-id\tcorpus-id\tscore":
        problems.append("qrels/test.tsv has the wrong header")
    if len({row["text"] for row in queries.values()}) != len(queries):
        problems.append("two queries have the same text")
    counts: Counter[str] = Counter()
    for identifier, row in queries.items():
        relevant = [name for query, name in qrels if query == identifier]
        problems += check_query(row, {name: texts.get(name, []) for name in relevant})
        meta = row["metadata"]
        state = "answerable" if meta["answerable"] else "unanswerable"
        counts[f"{state}, {meta['lang']}"] += 1
        counts[f"{state}, {meta['kind']}, {meta['lang']}"] += 1
    for key, count in sorted(counts.items()):
        print(f"{count:4d}  {key}")
    print(f"{len(texts):4d}  documents, {len(queries)} queries, {len(lines)} relevance judgements")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="verify instead of building")
    if not parser.parse_args().check:
        build()
        return 0
    problems = check()
    for problem in problems:
        print(f"PROBLEM {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
