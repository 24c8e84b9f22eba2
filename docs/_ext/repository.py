"""Pages are written for a reader of the repository; here they are made to read as well on the site.

- A page whose body is ```` ```{include} ../../FILE.md ```` shows that file; links to the file lead to the page.
- Links to files outside of `docs/` lead to the repository where its address is known, or else to a copy.
- ```` ```sh needs: a GPU ```` says above the block what it needs that the tests do not have.
- ```` ```{open-notebook} ```` is how to get a tutorial as a notebook.
"""

import os
import pathlib
import re

DOCS = pathlib.Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
_INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]*)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]*)()\)")
_NEEDS = re.compile(r"^```(\w+) needs: (.*)$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1$", re.MULTILINE | re.DOTALL)


def address() -> str:
    """The repository on GitHub, as the machine that builds knows it; "" elsewhere."""
    if name := os.environ.get("GITHUB_REPOSITORY"):
        return f"https://github.com/{name}"
    return os.environ.get("READTHEDOCS_GIT_CLONE_URL", "").removesuffix(".git")


def shown() -> dict[pathlib.Path, pathlib.Path]:
    """File outside of `docs/` -> the page that shows it."""
    pages = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
    found = {page: _INCLUDE.search(page.read_text("utf-8")) for page in pages}
    return {(page.parent / match[1]).resolve(): page for page, match in found.items() if match}


def site_text(page: pathlib.Path, text: str) -> str:
    """The text of `page`, a path, as the site wants it.

    Raises:
      ValueError: a link leads to a file that is not there, or text would not be shown (a line that begins with %, a
        cell more than the head of the table has).
    """
    source = page
    if include := _INCLUDE.search(text):
        source = (page.parent / include[1]).resolve()
        text = source.read_text("utf-8")
    pages = shown()

    def link(match: re.Match, image: str = "") -> str:
        words, target, anchor = match.groups()
        path = pathlib.Path(os.path.normpath(source.parent / target))
        if not path.exists():
            raise ValueError(f"{page.relative_to(ROOT)} links to {target}, which is not there")
        path = pages.get(path, path)
        if path.is_relative_to(DOCS) or image or not address():
            if path.is_dir():
                return words
            return f"{image}[{words}]({os.path.relpath(path, page.parent)}{anchor or ''})"
        kind = "tree" if path.is_dir() else "blob"
        return f"[{words}]({address()}/{kind}/main/{path.relative_to(ROOT)}{anchor or ''})"

    def prose(part: str) -> str:
        if lost := re.search(r"^ *%.*", part, re.MULTILINE):
            raise ValueError(f"{page.relative_to(ROOT)}: a line that begins with % is not shown: {lost[0]}")
        for table in re.findall(r"(?:^\|.*\n?)+", part, re.MULTILINE):
            cells = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
            if set(cells) != {cells[0]}:
                row = next(row for row, n in zip(table.splitlines(), cells) if n != cells[0])
                raise ValueError(f"{page.relative_to(ROOT)}: a row has other cells than its head: {row}")
        return _IMAGE.sub(lambda match: link(match, "!"), _LINK.sub(link, part))

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [prose(text[end : fence.start()]), fence[0]]
        end = fence.end()
    text = "".join([*parts, prose(text[end:])])
    text = _NEEDS.sub(r"*Not run by the tests; needs \2:*\n\n```\1", text)
    return text.replace("```{open-notebook}\n```", _open_notebook(page))


def _open_notebook(page: pathlib.Path) -> str:
    words = f"This page is a notebook: {{nb-download}}`{page.stem}.ipynb`."
    if not address():
        return words
    name = address().removeprefix("https://github.com/")
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    colab = f"https://colab.research.google.com/github/{name}/blob/notebooks/{page.stem}.ipynb"
    return f"[![Open in Colab]({badge})]({colab}) {words} In Colab, first run `%pip install git+{address()}`."


def setup(app):
    def read(app, docname, content):
        content[0] = site_text(DOCS / f"{docname}.md", content[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
