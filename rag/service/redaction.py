"""Text for a log: what names, reaches or pays for a person is left out, and so are keys.

Each pattern is bounded, so that time grows with the length of the text and with nothing else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import date
from functools import cache
from itertools import chain
from typing import TypeAlias

# How many characters, from its beginning, of what a pattern found are what it looks for.
_Measure: TypeAlias = Callable[[str], int]
_Rule: TypeAlias = tuple[re.Pattern[str], str, _Measure]

# Letters and digits of any script join a number in \b, and Chinese has no spaces: so only ASCII
# counts. A number is not the end of a decimal, 0.13812345678, either.
_START = r"(?<![0-9A-Za-z])(?<![0-9][.,])"
_END = r"(?![0-9A-Za-z])(?!\.[0-9])"

# ISO 13616 registry: the length of each country's numbers.
_IBAN = dict(
    re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
        "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
        "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
        "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
        "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30",
    )
)

# ISO/IEC 7812 ranges in use: Visa, Diners, American Express, JCB, Mastercard, Maestro, UnionPay.
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|3(?:0[0-5]|[689]\d)\d{11}|3[47]\d{13}|35\d{14,17}|5\d{15}"
    r"|(?:5[0678]|6\d)\d{11,17}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
)


def redacted(text: str) -> str:
    """`text` with "[mail]", "[phone]", "[card]", "[id]", "[iban]", "[key]", "[login]" in place of
    what is one. Full-width digits and letters count as plain ones; all else stays as it is.
    """
    plain = text if text.isascii() else text.translate(_folded())
    if not _SUSPECT.search(plain):  # as most texts of a log are
        return text
    rules = [rule for mark, rule in _MARKED if mark in plain]
    if _LONG_NUMBER.search(plain):
        rules += _NUMBERS
    for rule in rules:
        text, plain = _without(text, plain, *rule)
    return text


def _without(
    text: str, plain: str, pattern: re.Pattern[str], name: str, measure: _Measure
) -> tuple[str, str]:
    """Both texts, which are equally long, without what the pattern finds in `plain`."""
    spans, at = [], 0
    while found := pattern.search(plain, at):
        length = measure(found[0])
        at = found.start() + (length or 1)
        if length:
            spans.append((found.start(), at))
    return (_cut(text, spans, name), _cut(plain, spans, name)) if spans else (text, plain)


def _cut(text: str, spans: list[tuple[int, int]], name: str) -> str:
    pieces, last = [], 0
    for start, end in spans:
        pieces += [text[last:start], name]
        last = end
    return "".join([*pieces, text[last:]])


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _card(text: str) -> int:
    """In the range of a brand, and right by Luhn (ISO/IEC 7812-1)."""
    digits = _digits(text)
    if not _CARD.fullmatch(digits):
        return 0
    total = sum(int(digit) for digit in digits[-1::-2])
    total += sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return len(text) if total % 10 == 0 else 0


def _resident_id(text: str) -> int:
    """A date of birth in it, and right by GB 11643-1999; the old form has no check digit."""
    number = re.sub("[ -]", "", text).upper()
    try:
        date.fromisoformat(number[6:14] if len(number) == 18 else f"19{number[6:12]}")
    except ValueError:
        return 0
    weighed = sum(int(digit) * (2 ** (17 - n) % 11) for n, digit in enumerate(number[:17]))
    return len(text) if len(number) == 15 or number[17] == "10X98765432"[weighed % 11] else 0


def _iban(text: str) -> int:
    """As long as its country's are, and right by ISO 7064 (mod 97). Words may follow it."""
    wanted = int(_IBAN.get(text[:2].upper(), "0"))
    ends = [n for n, sign in enumerate(text, start=1) if sign != " "][wanted - 1 : wanted]
    if not wanted or not ends or text[ends[0] : ends[0] + 1].isalnum():
        return 0
    number = text[: ends[0]].replace(" ", "")
    return (
        ends[0] if int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1 else 0
    )


def _phone_abroad(text: str) -> int:
    """E.164 allows 15 digits; the shortest in use have 8 with the country's code."""
    return len(text) if 8 <= len(_digits(text).lstrip("0")) <= 15 else 0


@cache
def _folded() -> dict[int, str]:
    """Characters that stand for one of ASCII: by NFKC, digits of other scripts, and dashes."""
    folded = {ord(dash): "-" for dash in "‐‑‒–—−"}
    for code in chain(
        range(0xA0, 0x3400), range(0xA600, 0xABFF), range(0xFB00, 0x10000), range(0x1D400, 0x1FC00)
    ):
        sign = chr(code)
        same = str(unicodedata.decimal(sign, "")) or unicodedata.normalize("NFKC", sign)
        if len(same) == 1 and same.isascii():
            folded[code] = same
    return folded


_KEY = r"(?<![0-9A-Za-z_-])(?:rag|sk|pk|hf|pcsk)[_-](?=[A-Za-z_-]{0,64}[0-9])[0-9A-Za-z_-]{16,}"
_JWT = r"(?<![0-9A-Za-z_-])eyJ[0-9A-Za-z_-]{8,}(?:\.[0-9A-Za-z_-]+){1,4}"
_TOKEN = r"(?<![0-9A-Za-z])(?i:Bearer)\s{1,4}(?=[^\s]{0,128}[0-9])[0-9A-Za-z._~+/=-]{8,}"
_SECRET = r"(?<=[?&])(?i:api_?key|key|token|access_token|password|secret|sig|signature)=[^&\s#]+"
# Never taken back, as no @ is in it. A word of another script is only part of it before the @.
_LOCAL = r"(?:[0-9A-Za-z._%+-]{1,64}+|[\w.+-]{1,64}+(?<![\x00-\x7f]))"
_DOMAIN = r"(?:(?:[0-9A-Za-z-]{1,63}\.){1,8}[A-Za-z]{2,24}|(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24})"

# What cannot be in a text without its mark is looked for only where that is.
_MARKED: list[tuple[str, _Rule]] = [
    ("://", (re.compile(r"(?<=://)[^\s/?#]{1,256}@"), "[login]@", len)),
    ("=", (re.compile(_SECRET), "[key]", len)),
    ("@", (re.compile(f"{_LOCAL}@{_DOMAIN}"), "[mail]", len)),
    ("earer", (re.compile(_TOKEN), "[key]", len)),
    ("EARER", (re.compile(_TOKEN), "[key]", len)),
    ("eyJ", (re.compile(_JWT), "[key]", len)),
    ("_", (re.compile(_KEY), "[key]", len)),
    ("k-", (re.compile(_KEY), "[key]", len)),
]

_SUSPECT = re.compile(r"\d\d|[@=_]|://|eyJ|earer|EARER|k-")
_LONG_NUMBER = re.compile(_START + r"(?:[+(]?\d(?:[ ()+.-]{0,2}\d){6}|[A-Za-z]{2}\d\d)")
_BORN = r"(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_RESIDENT = rf"[1-9]\d{{5}}(?:[ -]?(?:19|20)\d\d{_BORN}[ -]?\d{{3}}[\dXx]|\d\d{_BORN}\d{{3}})"
_GROUPS = r"\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}|\d{6}[ -]\d{13}|\d{13,19}"
_SSN = r"(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}"  # as they are given out since 2011
_MOBILE = r"(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"
_LANDLINE = r"(?:\(0[1-9]\d{1,2}\) ?|0[1-9]\d{1,2}[ -]|0(?:10|2\d))[1-9]\d{6,7}(?:-\d{1,6})?"
_NORTH_AMERICA = r"(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-.]\d{4}"
_ABROAD = r"(?:\+[1-9]|(?<![0-9][ -])00[1-9]\d{0,2}[ -])(?:[ ()-]{0,2}\d){6,14}"


def _number(pattern: str, name: str, measure: _Measure = len) -> _Rule:
    return re.compile(f"{_START}(?:{pattern}){_END}"), name, measure


_NUMBERS = [
    _number(_RESIDENT, "[id]", _resident_id),
    _number(r"[A-Za-z]{2}\d\d(?: ?[0-9A-Za-z]){11,30}", "[iban]", _iban),
    _number(_GROUPS, "[card]", _card),
    _number(_SSN, "[id]"),
    _number(_MOBILE, "[phone]"),
    _number(_ABROAD, "[phone]", _phone_abroad),
    _number(f"{_LANDLINE}|{_NORTH_AMERICA}", "[phone]"),
]
