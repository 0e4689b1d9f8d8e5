"""What each format gives as text. The files are made here, by other programs than read them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given, settings
from hypothesis import strategies as st
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from ingest.read import Parsed, read
from ingest.readers.text import decode
from rag.errors import UnreadableFile

DOCUMENTS = Path(__file__).parents[3] / "shared" / "data" / "documents"


@pytest.fixture
def parse(tmp_path: Path) -> Any:
    def parse(suffix: str, data: bytes | str) -> Parsed:
        path = tmp_path / f"stem{suffix}"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return read(path)[1]

    return parse


def only_page(parsed: Parsed) -> str:
    (page,) = parsed.pages
    assert page.number is None
    return page.text


# PDF


def pdf(*pages: str, title: str = "", password: str = "", owner: str = "", font: str = "") -> bytes:
    encryption = StandardEncryption(password, owner) if password or owner else None
    buffer = io.BytesIO()
    canvas = Canvas(buffer, encrypt=encryption, invariant=True)
    canvas.setTitle(title)
    for page in pages:
        canvas.setFont(font or "Helvetica", 12)
        for number, line in enumerate(page.splitlines()):
            canvas.drawString(72, 700 - 20 * number, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def test_pdf_pages_keep_their_numbers_when_some_are_empty(parse: Any) -> None:
    parsed = parse(".pdf", pdf("one\nline two", "", "three", "", title="The title"))
    assert [(page.number, page.text) for page in parsed.pages] == [
        (1, "one\nline two"),
        (3, "three"),
    ]
    assert parsed.title == "The title"


def test_pdf_with_fonts_that_are_not_embedded(parse: Any) -> None:
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    written = "安装手册，第一章。你好 TK-40"
    assert parse(".pdf", pdf(written, font="STSong-Light")).pages[0].text == written


def test_pdf_words_broken_at_a_line_end_are_whole(parse: Any) -> None:
    text = (
        "a repre-\nsentation by Lucene-\nBM25 with a dual-\nencoder, a dual-encoder, of 2019-\n2021"
    )
    (page,) = parse(".pdf", pdf(text)).pages
    for word in ("representation", "Lucene-BM25", "2019-2021"):
        assert word in page.text
    assert page.text.count("dual-encoder") == 2


def test_pdf_words_without_spaces_go_on_after_a_full_line(parse: Any) -> None:
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    text = "A line of Latin letters that is far wider than the others, but is no measure.\n"
    text += "准备\n探头每一百二十天标定一次必须立即重新标\n定。逾期未标定时不能写入。\n短行\n读数"
    (page,) = parse(".pdf", pdf(text, font="STSong-Light")).pages
    assert page.text == text.replace("标\n定", "标定")


def test_pdf_forms_give_what_was_filled_in(parse: Any) -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    canvas.drawString(72, 700, "Name:")
    canvas.acroForm.textfield(name="name", value="Ada Lovelace", x=150, y=690)
    canvas.save()
    assert "Ada Lovelace" in parse(".pdf", buffer.getvalue()).pages[0].text


def test_pdf_with_a_password_is_told(parse: Any) -> None:
    with pytest.raises(UnreadableFile, match="is password-protected; remove the password"):
        parse(".pdf", pdf("secret", password="p", owner="o"))
    assert parse(".pdf", pdf("not to be printed", owner="o")).pages[0].text == "not to be printed"


@pytest.mark.parametrize("data", [b"no PDF", b"%PDF-1.7\n", pdf("cut off")[:200]])
def test_pdf_that_is_broken_is_told(parse: Any, data: bytes) -> None:
    with pytest.raises(UnreadableFile, match=r"is not a readable PDF|holds no text") as raised:
        parse(".pdf", data)
    assert "Traceback" not in str(raised.value)


def test_pdf_without_text_is_sent_to_ocr(parse: Any) -> None:
    with pytest.raises(UnreadableFile, match=r"holds no text; .* run OCR on it first"):
        parse(".pdf", pdf("", ""))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docling/right_to_left_01.pdf", "تحسين الإنتاجية وحل المشكلات من خلال البرمجة"),
        ("docling/normal_4pages.pdf", "코로나-19가 세계적 유행(Pandemic) 단계"),
        ("pdf.js/vertical.pdf", "日本語\nあいうえお"),
        ("pdf.js/noembed-jis7.pdf", "ABC あいうえお 123"),
        ("pdf.js/Pages-tree-refs.pdf", "Testcase: ’Pages loop’"),  # PDFium cannot load it
        ("unstructured/multi-column.pdf", "a simple dual-encoder framework"),
        ("unstructured/negative-coords.pdf", "\n• Life Cycle Assessment course"),
        ("unstructured/rotated-page-90.pdf", "Rotated page fixture\nSecond line"),
        ("unstructured/docx-hdrftr.docx", "First header para\n\nTable cell1 | Table cell2"),
        ("unstructured/docx-shapes.docx", "within.\n\n<inline-image>\n\nParagraph with"),
        ("unstructured/grid_offset_error.docx", "A | Merged B1-B3\nC | Merged B1-B3"),
        ("unstructured/handbook-872p.docx", "must continue[^1]/ a meeting"),
        ("unstructured/handbook-872p.docx", "\n\n[^1]: / References to “continue”"),
        ("unstructured/fake-html-cp1252.html", "L'été était très chaud cette année."),
        (
            "unstructured/example-steelJIS-datasheet-utf-16.html",
            "C | Si | Mn | P | S | Cr | Mo\n0.39 - 0.46 | 0.2 - 0.35 | 0.65 - 1.1 | max 0.025",
        ),
        ("docling/wiki_duck.html", "Phylum: | Chordata\nClass: | Aves"),
    ],
)
def test_real_files(name: str, text: str) -> None:
    if not DOCUMENTS.is_dir():
        pytest.skip("needs ../shared/data/documents")
    assert text in "\n\f\n".join(page.text for page in read(DOCUMENTS / name)[1].pages)


# Pages that one of the two engines cannot read


class Engines:
    """Stands in for both engines, with the texts that they find on each page."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def give(self, pdfium: list[str | None], pypdf: list[str | None]) -> None:
        name = "ingest.readers.pdf."
        self._patch.setattr(name + "_pdfium", lambda data: (pdfium, ""))
        self._patch.setattr(name + "_pypdf", lambda data, wanted, title: (pypdf, title))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


def test_pdf_takes_the_better_text_of_each_page(parse: Any, engines: Engines) -> None:
    engines.give(
        pdfium=["good one", "tw\x12\x13\x14\x15\x16", None, "same"],
        pypdf=[None, "two", "three", "\ufffdame"],
    )
    pages = parse(".pdf", b"").pages
    assert [(p.number, p.text) for p in pages] == [
        (1, "good one"),
        (2, "two"),
        (3, "three"),
        (4, "same"),
    ]


def test_pdf_pages_of_glyphs_are_left_out_and_most_of_them_refused(
    parse: Any, engines: Engines
) -> None:
    glyphs, names = "\ue001\ue002\ue003\ue004 \ue005", "/g18/g152/g135 /g148/g152/g139/g135"
    engines.give(pdfium=["text", glyphs, "text", "text"], pypdf=[None, names, None, None])
    assert [page.number for page in parse(".pdf", b"").pages] == [1, 3, 4]
    engines.give(pdfium=["cover", glyphs, glyphs], pypdf=[None, names, names])
    with pytest.raises(UnreadableFile, match=r"fonts that do not say .* --force-ocr"):
        parse(".pdf", b"")


# Word


def word(document: Any) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def xml(content: str) -> Any:
    return parse_xml(f"<w:p {nsdecls('w', 'wp')}>{content}</w:p>")


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def test_docx_has_headings_lists_and_tables_in_order(parse: Any) -> None:
    document = docx.Document()
    document.core_properties.title = ""
    document.add_heading("Leave policy", 0)
    document.add_heading("Annual leave", 1)
    document.add_paragraph("Staff have:")
    document.add_paragraph("25 days", style="List Bullet")
    document.add_paragraph("and holidays", style="List Bullet")
    table = document.add_table(2, 3)
    for cell, text in zip(table._cells, "Grade Days Days A 25 25".split(), strict=True):
        cell.text = text
    document.add_heading("Sick leave", 2)
    document.add_paragraph("First\tsecond").add_run().add_break()
    parsed = parse(".docx", word(document))
    assert only_page(parsed) == (
        "# Leave policy\n\n# Annual leave\n\nStaff have:\n\n- 25 days\n- and holidays\n\n"
        "Grade | Days | Days\nA | 25 | 25\n\n## Sick leave\n\nFirst\tsecond"
    )
    assert parsed.title == "Leave policy"


def test_docx_cells_that_span_rows_are_in_each_row(parse: Any) -> None:
    document = docx.Document()
    table = document.add_table(3, 3)
    for cell, text in zip(table._cells, "abcdefghi", strict=True):
        cell.text = text
    table.cell(0, 0).merge(table.cell(1, 0)).text = "tall"
    table.cell(2, 0).merge(table.cell(2, 1)).text = "wide"
    inner = table.cell(2, 2).add_table(1, 1)
    inner.cell(0, 0).text = "inner"
    assert only_page(parse(".docx", word(document))) == "tall | b | c\ntall | e | f\nwide | i inner"


def test_docx_columns_are_counted_past_cells_that_span_several(parse: Any) -> None:
    document = docx.Document()
    table = document.add_table(2, 3)
    for cell, text in zip(table._cells, "abcdef", strict=True):
        cell.text = text
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    table.cell(0, 2).merge(table.cell(1, 2)).text = "tall"
    assert only_page(parse(".docx", word(document))) == "wide | tall\nd | e | tall"


def test_docx_rows_need_not_be_even(parse: Any) -> None:
    document = docx.Document()
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, "abcd", strict=True):
        cell.text = text
    row = table.rows[1]._tr
    row.remove(row.tc_lst[1])
    document.add_table(1, 1).cell(0, 0).text = "A frame.\nIts second line."
    text = only_page(parse(".docx", word(document)))
    assert text.startswith("a | b\nc\n\nA frame.")


def test_docx_shows_changes_as_accepted_and_nothing_hidden(parse: Any) -> None:
    document = docx.Document()
    deleted = "<w:del><w:r><w:tab/><w:delText>old</w:delText></w:r></w:del>"
    hidden = "<w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r>"
    link = f'<w:hyperlink w:anchor="x">{run("a link")}</w:hyperlink>'
    field = "<w:r><w:instrText>PAGEREF x</w:instrText></w:r>"
    moved = f"<w:moveFrom>{run('moved')}</w:moveFrom>"
    body = document.element.body
    changed = f"{run('The ')}{deleted}<w:ins>{run('new')}</w:ins>{moved}{run(' text of ')}"
    body.insert(0, xml(changed + link + hidden + field))
    assert only_page(parse(".docx", word(document))) == "The new text of a link"


def test_docx_text_boxes_and_content_controls_are_read_once(parse: Any) -> None:
    document = docx.Document()
    mc = "http://schemas.openxmlformats.org/markup-compatibility/2006"
    box = f"<w:txbxContent><w:p>{run('in the box')}</w:p></w:txbxContent>"
    drawn = f"<w:r><mc:AlternateContent xmlns:mc='{mc}'><mc:Choice Requires='wps'>{box}</mc:Choice>"
    drawn += f"<mc:Fallback>{box}</mc:Fallback></mc:AlternateContent></w:r>"
    control = (
        f"<w:sdt {nsdecls('w')}><w:sdtContent><w:p>{run('control')}</w:p></w:sdtContent></w:sdt>"
    )
    body = document.element.body
    body.insert(0, xml(f"{run('before ')}{drawn}{run('after')}"))
    body.insert(1, parse_xml(control))
    assert only_page(parse(".docx", word(document))) == "before after\n\nin the box\n\ncontrol"


def test_docx_headers_and_footers_are_read_once(parse: Any) -> None:
    document = docx.Document()
    document.add_paragraph("Body")
    for _ in range(2):
        section = document.add_section()
        section.header.is_linked_to_previous = False
        section.header.paragraphs[0].text = "Kelda, confidential"
        section.footer.is_linked_to_previous = False
        section.footer.paragraphs[0].text = "Revision C"
        section.first_page_header.paragraphs[0].text = "not printed"
        section.different_first_page_header_footer = False
    text = only_page(parse(".docx", word(document)))
    assert text == "Kelda, confidential\n\nBody\n\nRevision C"


def test_docx_headings_are_known_by_their_level_not_their_name(parse: Any) -> None:
    document = docx.Document()
    document.styles["Heading 2"].name = "Überschrift 2"
    own = document.styles.add_style("Chapter", 1)
    own.base_style = document.styles["Heading 1"]
    document.add_paragraph("Kapitel", style="Chapter")
    document.add_paragraph("Abschnitt", style="Überschrift 2")
    assert only_page(parse(".docx", word(document))) == "# Kapitel\n\n## Abschnitt"


def test_docx_that_is_old_protected_or_broken_is_told(parse: Any) -> None:
    with pytest.raises(UnreadableFile, match=r"is password-protected or an old \.doc; save it"):
        parse(".docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512))
    whole = word(docx.Document())
    for data in (b"", b"PK\x03\x04 no archive", whole[: len(whole) // 2]):
        with pytest.raises(UnreadableFile, match=r"is not a \.docx file"):
            parse(".docx", data)


def test_docx_that_unpacks_to_too_much_is_told_before_it_does(parse: Any) -> None:
    data = bytearray(word(docx.Document()))
    size = data.rindex(b"PK\x01\x02") + 24  # in the directory, of the last file
    data[size : size + 4] = (2**30).to_bytes(4, "little")
    with pytest.raises(UnreadableFile, match="unpacks to more than 1 GB"):
        parse(".docx", bytes(data))


# HTML


def html(parse: Any, body: str) -> str:
    return only_page(parse(".html", f"<!doctype html><meta charset=utf-8><body>{body}</body>"))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            "<h1>One</h1><p>two  \n three</p><h3>Four</h3>five",
            "# One\n\ntwo three\n\n### Four\n\nfive",
        ),
        ("a<b>b</b>c <i>d</i><br>e<br><br>f", "abc d\ne\n\nf"),
        ("<div>a</div> <div>b</div>c<span>d</span>", "a\nb\ncd"),
        ("x &lt; y &amp;&nbsp;z &#8364; &eacute;", "x < y & z € é"),
        ("<ul> <li>a</li> <li><p>b</p></li> <li></li> </ul>c", "- a\n- b\n\nc"),
        ("<ol start=3><li>a<li>b<ul><li>c</ul><li>d</ol>", "3. a\n4. b\n  - c\n5. d"),
        ("<dl><dt>Term<dd>Meaning<dt>Next<dd>More</dl>", "Term\nMeaning\nNext\nMore"),
        ("<pre>\nif x:\n    y  # <b>no</b> heading\n</pre>z", "if x:\n    y  # no heading\n\nz"),
        ("<p>seen<p hidden>h</p><p style='Display: none'>d</p><!-- c -->", "seen"),
        ("<nav>n</nav><script>s</script><style>s</style><template>t</template>seen", "seen"),
        ("<form action=x><h2>All of an ASP.NET page</h2></form>", "## All of an ASP.NET page"),
        ("<h2> </h2><p></p>a", "a"),
    ],
)
def test_html(parse: Any, body: str, text: str) -> None:
    assert html(parse, body) == text


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("<tr><th>a<th> b\n b<tr><td><p>1</p><td>2<br>3", "a | b b\n1 | 2 3"),
        ("<caption>Sizes</caption><tr><td>a<td><tr><td><td>", "Sizes\na |"),
        ("<tr><td rowspan=2>a<td>b<tr><td>c<tr><td>d<td>e", "a | b\na | c\nd | e"),
        ("<tr><td colspan=2>a<td rowspan=2>b<tr><td>c<td>d", "a | b\nc | d | b"),
        ("<tr><td>a<td>b<tr><td><table><tr><td>c<td>d</table>", "a | b\n\nc | d"),
        ("<tr><td><h1>Page</h1><p>in a table<td>aside", "# Page\n\nin a table\n\naside"),
        ("<tr><td><p>A frame.<p>Second.", "A frame.\n\nSecond."),
    ],
)
def test_html_tables(parse: Any, table: str, text: str) -> None:
    assert html(parse, f"<table>{table}</table>") == text


@pytest.mark.parametrize(
    ("encoding", "declared", "written"),
    [
        ("utf-8", "", "naïve 你好 €"),
        ("utf-8", "iso-8859-1", "naïve 你好 €"),  # wrongly declared, and common
        ("cp1252", "", "naïve café – 15,50 €"),
        ("cp1252", "iso-8859-1", "naïve café – 15,50 €"),
        ("cp1252", "utf-16", "naïve café"),
        ("cp1252", "zip", "naïve café"),
        ("gb18030", "gb2312", "你好，鎔基"),
        ("cp932", "x-sjis", "日本語①"),
        ("cp949", "ks_c_5601-1987", "한국어 똠"),
        ("iso2022_jp", "iso-2022-jp", "日本語"),
        ("windows-1251", "windows-1251", "Привет"),
        ("utf-16", "", "naïve 你好"),
        ("utf-32", "utf-8", "naïve 你好"),
        ("utf-8-sig", "gb2312", "naïve 你好"),
    ],
)
def test_html_encodings(parse: Any, encoding: str, declared: str, written: str) -> None:
    meta = f'<meta http-equiv="Content-Type" content="text/html; charset={declared}">'
    page = f"<html><head>{meta if declared else ''}</head><body><p>{written}</p></body></html>"
    assert only_page(parse(".html", page.encode(encoding))) == written


def test_html_keeps_what_it_can_of_a_damaged_encoding(parse: Any) -> None:
    page = "<meta charset=gbk><p>你好，世界".encode("gbk") + b"\xff</p>"
    assert only_page(parse(".htm", page)).startswith("你好，世界")


def test_html_titles(parse: Any) -> None:
    assert parse(".html", "<title>T</title><h1>H</h1>").title == "T"
    assert (
        parse(".html", "<title> </title><svg><title>S</title></svg><h1>H <i>i</i></h1>").title
        == "H i"
    )
    assert parse(".html", "<p>text").title == "stem"


def test_html_nested_thousands_deep_is_read(parse: Any) -> None:
    deep = "<div><ul><li>" * 5_000 + "core"
    assert "core" in html(parse, deep)


@pytest.mark.parametrize("root", ['html xmlns="http://www.w3.org/1999/xhtml"', "feed"])
def test_xml_is_read_without_warnings(parse: Any, root: str) -> None:
    page = f'<?xml version="1.0" encoding="utf-8"?><{root}><body><p>text</p></body>'
    assert only_page(parse(".html", page)) == "text"


# Markdown


FRONT = """---
title: "The: title"
lang: en
year: 2024
draft: false
share: 0.5
date: 2024-05-01
at: 2024-05-01 10:30:00
tags: [a, b]
none:
source: elsewhere
$odd: x
3: three
---
# Heading

Text.
"""


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_markdown_front_matter_is_title_and_metadata(parse: Any, ends: str) -> None:
    parsed = parse(".md", FRONT.replace("\n", ends))
    assert parsed.title == "The: title"
    assert only_page(parsed) == "# Heading\n\nText."
    assert parsed.metadata == {
        "lang": "en",
        "year": 2024,
        "draft": False,
        "share": 0.5,
        "date": "2024-05-01",
        "at": "2024-05-01T10:30:00",
    }


@pytest.mark.parametrize("front", ["title: [a, b]", "title:", "title: ''", "# a comment", ""])
def test_markdown_without_a_plain_title_takes_the_heading(parse: Any, front: str) -> None:
    for text in (f"---\n{front}\n---\n# Heading", f"---\n{front}\n...\n\n# Heading\n"):
        parsed = parse(".md", text)
        assert (parsed.title, only_page(parsed)) == ("Heading", "# Heading")


@pytest.mark.parametrize(
    "text",
    [
        "---\n- a list\n---\ntext",
        "---\nkey: [unclosed\n---\ntext",
        "---\njust words\n---\ntext",
        "---\ndate: 2024-99-99\n---\ntext",
        "---\nkey: value\nno end",
        "---\n" + "[" * 5_000 + "\n---\ntext",
        "a line\n---\nkey: value\n---\ntext",
    ],
)
def test_markdown_that_has_no_front_matter_is_text(parse: Any, text: str) -> None:
    parsed = parse(".md", text)
    assert only_page(parsed) == text
    assert parsed.metadata == {}


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# One\n# Two", "One"),
        ("text\n\n   # One ##\n", "One"),
        ("## Second\n\n# First", "First"),
        ("One\n===\n", "One"),
        ("text\n\nOne\n=\ntext", "One"),
        ("```sh\n# a comment\n```\n# One", "One"),
        ("~~~~\n~~~\n# a comment\n```\n~~~~\n# One", "One"),
        ("``` not closed\n# a comment", "stem"),
        ("    # code\n#hashtag\n#", "stem"),
        ("#\n\nnext", "stem"),
        ("===\n\ntext", "stem"),
        ("# C#", "C#"),
    ],
)
def test_markdown_titles(parse: Any, text: str, title: str) -> None:
    assert parse(".markdown", text).title == title


def test_markdown_pictures_in_base64_leave_their_description(parse: Any) -> None:
    text = "a ![the pump](data:image/png;base64,iVBORw0KGgo=) b ![seen](pump.png)"
    assert only_page(parse(".md", text)) == "a the pump b ![seen](pump.png)"


@pytest.mark.parametrize(
    "piece", ["![", "![](data:", "# " + " " * 99 + "#", "---\n", "`" * 9 + "\n"]
)
def test_markdown_is_read_in_linear_time(parse: Any, piece: str) -> None:
    parse(".md", "x" + piece * 20_000)


# Text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_encodings(parse: Any, encoding: str) -> None:
    assert only_page(parse(".txt", "naïve 你好".encode(encoding))) == "naïve 你好"


def test_text_in_another_encoding_is_told_and_not_guessed(parse: Any) -> None:
    with pytest.raises(UnreadableFile, match=r"is not UTF-8 text \(byte 2\); convert it.* iconv"):
        parse(".txt", "naïve".encode("latin-1"))
    with pytest.raises(UnreadableFile, match=r"is not UTF-16 text"):
        parse(".txt", b"\xff\xfea")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Minutes of May\n\nPresent: all.", "Minutes of May"),
        ("\n\n  Minutes of May\nPresent", "Minutes of May"),
        ("Minutes", "Minutes"),
        ("It was a dark and stormy night and\nthe rain fell.", "stem"),
        ("x" * 151 + "\n\nText", "stem"),
        ("-----\nText", "stem"),
    ],
)
def test_text_titles(parse: Any, text: str, title: str) -> None:
    assert parse(".txt", text).title == title


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_decode_gives_back_what_was_encoded(text: str, encoding: str) -> None:
    # The mark says how to read, and is no text; UTF-16 with a zero first looks like UTF-32's.
    text = text.lstrip("\ufeff\0")
    assert decode(text.encode(encoding)) == text


@settings(deadline=None)
@given(st.binary())
def test_decode_gives_text_or_says_why_not(data: bytes) -> None:
    try:
        assert isinstance(decode(data), str)
    except UnreadableFile as error:
        assert error.hint
