"""The README's matrix: every store against every group of the contract, by running the tests.

    python benchmarks/matrix.py [--write]

Prints a Markdown table; `--write` puts it into README.md between its marks. A cell is the number
of tests passed, what is known to fail with its reason, or n/a for what a store does not claim.
Needs what the tests need; exits with 1 when a test fails.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # the script's own folder would make `stores` its neighbour stores.py
BEGIN, END = "<!-- matrix: python benchmarks/matrix.py --write -->", "<!-- end of matrix -->"


class Outcomes:
    """A pytest plug-in that counts the outcomes of contract tests by class and group."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
        """Note the outcome of a test that comes from a group of the contract."""
        report = yield
        group = getattr(item, "function", item).__qualname__.partition(".")[0]
        if report.when == "call" or report.failed:
            reason = getattr(report, "wasxfail", "")
            if report.passed:
                outcome = "passed"
            elif not reason:
                outcome = "FAILED"
            elif "not applicable" in reason:
                outcome = "n/a"
            else:
                outcome = reason.removeprefix("reason: ")
            name = item.parent.name.removeprefix("Test")  # type: ignore[union-attr]
            self.counts[name][group][outcome] += 1
        return report


def table(outcomes: Outcomes) -> str:
    """The matrix in Markdown, with the reasons of known failures under it."""
    from stores.contract import GROUPS

    names = [group.__name__ for group in GROUPS]
    notes: list[str] = []
    rows = ["| | " + " | ".join(g.removesuffix("Tests") for g in names) + " |"]
    rows.append("|---" * (len(names) + 1) + "|")
    for name, groups in outcomes.counts.items():
        if not groups.keys() >= set(names):
            continue  # not the whole contract: an index of a store, say
        cells = [_cell(groups[group], notes) for group in names]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", *(f"{n}. {note}" for n, note in enumerate(notes, start=1))])


def _cell(counts: Counter[str], notes: list[str]) -> str:
    parts = []
    for outcome, count in sorted(counts.items(), key=lambda pair: pair[0] != "passed"):
        if outcome == "passed":
            parts.append(f"{count} pass")
        elif outcome == "n/a":
            parts.append("n/a" if len(counts) == 1 else f"{count} n/a")
        elif outcome == "FAILED":
            parts.append(f"**{count} FAIL**")
        else:
            if outcome not in notes:
                notes.append(outcome)
            parts.append(f"{count} xfail ({notes.index(outcome) + 1})")
    return ", ".join(parts) or "n/a"


def main() -> int:
    """Run the contract on every store and print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the matrix into README.md")
    write = parser.parse_args().write
    outcomes = Outcomes()
    status = pytest.main(["-q", "--no-header", str(ROOT / "tests" / "stores")], plugins=[outcomes])
    found = table(outcomes)
    print(found)
    if write:
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text("utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        readme.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", "utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
