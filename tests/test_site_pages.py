"""mkdocs.yml: the navigation has every page once, as `make docs` requires, which takes longer."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# As in tools/site/pages.py, which needs MkDocs.
PATTERNS = re.search(
    r"^PAGES = \((.+?)\)$", (ROOT / "tools" / "site" / "pages.py").read_text(), re.MULTILINE | re.DOTALL
)


def test_navigation_has_every_page_once():
    assert PATTERNS is not None
    patterns = re.findall(r'"([^"]+)"', PATTERNS[1])
    pages = sorted(str(page.relative_to(ROOT)) for pattern in patterns for page in ROOT.glob(pattern))
    listed = re.findall(r"^ +- (?:[^:]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == pages
    assert len(pages) > 40
