"""Hooks of MkDocs: which files of the repository are pages of the site, under the paths that they have in it.

Pages link to one another, to pictures, to source files and to folders. MkDocs knows the files of one folder, and pages
and pictures; so source files become pages that show them, folders become pages that list them, and links follow.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/results/*.md",
    "client/README.md",
    "deploy/**/*.md",
    "docs/*.md",
    "tests/README.md",
)
PICTURES = (".png", ".svg")
LANGUAGES = {".json": "json", ".proto": "protobuf", ".py": "python", ".sh": "sh", ".toml": "toml", ".yaml": "yaml"}
FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by all that the site has."""
    for file in list(files):
        if file.inclusion is not InclusionLevel.EXCLUDED and file.src_dir == config.docs_dir:
            files.remove(file)
    pages = sorted({str(path.relative_to(ROOT)) for pattern in PAGES for path in ROOT.glob(pattern)})
    for page in pages:
        files.append(_file(page, config))
    shown = set[str]()
    waiting = {path for page in pages for path in _linked_by(page)}
    while waiting:
        path = waiting.pop()
        if path in shown or path in pages:
            continue
        shown.add(path)
        if path.endswith(PICTURES):
            files.append(_file(path, config))
            continue
        made = File.generated(config, _page_of(path), content=_text_of(path), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(made)
        waiting.update(_files_of(path))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Turn links to source files and folders into links to the pages that show them."""
    folder = str(PurePosixPath(page.file.src_uri).parent)

    def turn(link: re.Match[str]) -> str:
        path = _resolve(folder, link["path"])
        if path is None or path.endswith((".md", *PICTURES)):
            return link[0]
        return relpath(_page_of(path), folder) + (link["anchor"] or "")

    code = [(match.start(), match.end()) for match in FENCED.finditer(markdown)]
    pieces, done = list[str](), 0
    for start, end in [*code, (len(markdown), len(markdown))]:
        pieces += [LINK.sub(turn, markdown[done:start]), markdown[start:end]]
        done = end
    return "".join(pieces)


def _file(path: str, config: MkDocsConfig) -> File:
    return File(path, src_dir=str(ROOT), dest_dir=config.site_dir, use_directory_urls=config.use_directory_urls)


def _linked_by(page: str) -> Iterator[str]:
    """Files and folders of the repository that a page links to."""
    text = FENCED.sub("", (ROOT / page).read_text())
    for link in LINK.finditer(text):
        path = _resolve(str(PurePosixPath(page).parent), link["path"])
        if path is not None:
            yield path


def _resolve(folder: str, link: str) -> str | None:
    """The file or folder of the repository that a link names; None if there is none, as for links to other hosts."""
    path = normpath(f"{folder}/{link}")
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _page_of(path: str) -> str:
    # Not index.md: a folder may have a README.md, which MkDocs takes for its index.
    return f"{path}/files.md" if (ROOT / path).is_dir() else f"{path}.md"


def _files_of(path: str) -> list[str]:
    """The files that the page of a folder lists: its pages, and the files that can be shown."""
    if not (ROOT / path).is_dir():
        return []
    return sorted(str(file.relative_to(ROOT)) for file in (ROOT / path).iterdir() if file.suffix in (".md", *LANGUAGES))


def _text_of(path: str) -> str:
    if (ROOT / path).is_dir():
        # A page that lists another folder's file by its own name: links are relative to the page.
        listed = "".join(f"- [{Path(file).name}]({Path(file).name})\n" for file in _files_of(path))
        return f"# {path}\n\n{listed}"
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n````{language}\n{(ROOT / path).read_text()}````\n"
