"""The page that a server shows: microphone or file, words as they are heard. No other assets than these files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/microphone.js": ("microphone.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src data:;"
    " connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def file(path: str) -> tuple[str, str, str] | None:
    """Content, type and security policy of what stands at a path, None for nothing."""
    if path not in FILES:
        return None
    name, kind = FILES[path]
    return (FOLDER / name).read_text(encoding="utf-8"), kind, POLICY
