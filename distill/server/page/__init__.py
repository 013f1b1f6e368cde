"""The page of a server: microphone or file in, words out. These files are its only assets."""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/microphone.js": "microphone.js"}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src data:;"
    " connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def file(path: str) -> tuple[str, str, str] | None:
    """Content, type and security policy of the file at a URL's path; None if there is none."""
    if path not in FILES:
        return None
    source = FOLDER / FILES[path]
    return source.read_text(encoding="utf-8"), f"{KINDS[source.suffix]}; charset=utf-8", POLICY
