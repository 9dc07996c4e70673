"""axe-core's findings: what people with other eyes, or without a mouse, cannot use."""

from functools import cache
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests import npm

PACKAGE = Path(__file__).parent / "axe"
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa")
"""Rules that count: those of WCAG 2.1, level AA."""
GRAVE = ("serious", "critical")
RUN = "tags => axe.run(document, { runOnly: { type: 'tag', values: tags }, resultTypes: ['violations'] })"


@cache
def axe() -> str:
    """The source of axe-core. OSError: it cannot be had from npm."""
    return (npm.install(PACKAGE, "axe") / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def axe_findings(page: Page) -> list[str]:
    """What is serious or critical on the page as it is now, one text for each element: rule, selector, what to mend.

    Evaluated as a debugger does, so the page's Content-Security-Policy stays as strict as it is."""
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate(axe())
    found: dict[str, Any] = page.evaluate(RUN, list(TAGS))
    return [
        f"{violation['id']} ({violation['impact']}): {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
        if (node["impact"] or violation["impact"]) in GRAVE
    ]
