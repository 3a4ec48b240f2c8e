"""The site in build/site, as `make docs` built it: links lead somewhere, and pages say what GitHub would show.

A browser that reads it asks no other host for anything.
"""

import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html"))
# Elements and attributes with which a page makes a browser load something at once; links are followed by readers.
LOADED = {
    ("script", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("source", "src"),
    ("source", "srcset"),
    ("video", "src"),
}
LOADED |= {
    ("link", "href"),
    ("iframe", "src"),
    ("object", "data"),
    ("embed", "src"),
    ("use", "href"),
    ("form", "action"),
}
# What the scripts of Material ask other hosts for, and the mark of a page that would make them do so.
ASKED_BY_SCRIPTS = {
    "https://unpkg.com/mermaid@11/dist/mermaid.min.js": 'class="mermaid"',
    "https://api.github.com/repos/": 'data-md-component="source"',
    "https://api.github.com/users/": 'data-md-component="source"',
    "https://unpkg.com/resize-observer-polyfill": None,  # in browsers without ResizeObserver, which are older than 2020
}
STRUCTURE = (
    "h1",
    "h2",
    "h3",
    "h4",
    "li",
    "ol",
    "ul",
    "pre",
    "table",
    "tr",
    "td",
    "th",
    "img",
    "a",
    "strong",
    "em",
    "code",
)


class Html(HTMLParser):
    """What a page loads, links to and names, and how often its text has each element."""

    def __init__(self, text: str, whole: bool = True):
        super().__init__()
        self.loads, self.links, self.names = list[str](), list[str](), set[str]()
        self.elements, self.text = Counter[str](), list[str]()
        self._inside = not whole
        self._skipped: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.loads += [value for name, value in given.items() if (tag, name) in LOADED]
        self.loads += re.findall(r"url\(([^)]*)\)", given.get("style", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag == "article":
            self._inside = True
        elif given.get("class") in ("headerlink", "md-source-file"):
            self._skipped = tag
        elif self._inside and self._skipped is None and tag in STRUCTURE:
            self.elements[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._inside = False
        elif tag == self._skipped:
            self._skipped = None

    def handle_data(self, data: str) -> None:
        if self._inside and self._skipped is None:
            self.text.append(data)


@cache
def page(name: str) -> Html:
    return Html((SITE / name).read_text())


def test_there_are_pages():
    assert {"index.html", "docs/client.html", "CHANGELOG.html", "benchmarks/results/race.html"} <= set(PAGES)


@pytest.mark.parametrize("name", [name for name in PAGES if name != "404.html"])
def test_every_link_and_picture_of_the_site_is_there(name: str):
    found = page(name)
    for link in [*found.links, *found.loads]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        assert not parts.path.startswith("/"), f"{link} works on a host of its own only"
        target = (SITE / name).parent / unquote(parts.path) if parts.path else SITE / name
        target = (target / "index.html" if target.is_dir() else target).resolve()
        assert target.is_file(), link
        if parts.fragment and target.suffix == ".html":
            assert unquote(parts.fragment) in page(str(target.relative_to(SITE))).names, link


@pytest.mark.parametrize("name", PAGES)
def test_no_page_loads_anything_from_another_host(name: str):
    assert [load for load in page(name).loads if urlsplit(load).netloc] == []


def test_no_style_loads_anything_from_another_host():
    styles = list(SITE.rglob("*.css"))
    assert styles
    for style in styles:
        for load in re.findall(r"(?:url\(|@import\s*)[\"']?([^\"')]*)", style.read_text()):
            assert load.startswith("data:") or not urlsplit(load).netloc, (style, load)


def test_no_page_makes_the_scripts_ask_another_host():
    """Addresses in the scripts, without comments, are those that are known, and no page has what they are for."""
    asked = set[str]()
    for script in (SITE / "assets" / "javascripts").glob("*.js"):
        code = re.sub(r"/\*.*?\*/", "", script.read_text(), flags=re.DOTALL)
        asked |= set(re.findall(r"[\"'`](https?://[\w.-]+/[^\"'`$]*)", code))
    assert {address for address in asked if "w3.org" not in address} == set(ASKED_BY_SCRIPTS)
    for mark in filter(None, ASKED_BY_SCRIPTS.values()):
        assert [name for name in PAGES if mark in (SITE / name).read_text()] == []


def markdown_of(name: str) -> Path | None:
    """The file of the repository that a page was made of."""
    for source in (name.removesuffix(".html") + ".md", name.replace("index.html", "README.md")):
        if (ROOT / source).is_file():
            return ROOT / source
    return None


@pytest.mark.parametrize("name", [name for name in PAGES if markdown_of(name)])
def test_pages_have_the_lists_tables_and_blocks_that_github_shows(name: str):
    """Both dialects of Markdown read the page alike, by the number of elements and by the words."""
    source = markdown_of(name)
    assert source is not None
    expected = Html(MarkdownIt("commonmark").enable("table").render(source.read_text()), whole=False)
    shown = page(name)
    assert dict(shown.elements) == dict(expected.elements)
    assert "".join(shown.text).split() == "".join(expected.text).split()
