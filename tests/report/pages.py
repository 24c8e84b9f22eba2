"""What is true of every page that is written."""

import base64
import hashlib
import html.parser
import pathlib
import re

from selftrain_jax.report import page as report


def check_script(page):
    """A page's one script holds nothing of the run, and its digest is the only one that the policy lets run."""
    script = re.fullmatch(r".*<script>(.*)</script>\n</body>\n</html>", page, flags=re.DOTALL)[1]
    assert script == (pathlib.Path(report.__file__).parent / "templates" / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)[1]
    assert html.unescape(policy).split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


class Page(html.parser.HTMLParser):
    """Collects the elements and attributes of a page, and checks that every element is closed in order."""

    VOID = {"meta", "wbr", "br"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
