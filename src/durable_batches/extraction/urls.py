"""Find URLs in a text, and normalise them so that two spellings of one address are equal."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

__all__ = ["FoundURL", "canonical_url", "find_urls"]


@dataclass(frozen=True, kw_only=True)
class FoundURL:
    """A URL and its place in a text."""

    url: str
    start: int
    end: int
    label: str | None = None
    """The text of the link, in Markdown or reStructuredText."""


_URL = re.compile(r"""\bhttps?://[^\s<>"'`\\^{}|\x00-\x1f]+""", re.IGNORECASE)
_MARKDOWN_LABEL = re.compile(r"(?P<image>!?)\[(?P<label>[^\[\]\n]{1,120})\]\(\s*<?$")
_RST_LABEL = re.compile(r"`(?P<label>[^`<>\n]{1,120}?)\s*<$")
_RST_IMAGE = re.compile(r"\.\.\s+(?:\|[^|\n]*\|\s+)?(?:image|figure)::\s*$|:target:\s*$")

_IMAGE_SUFFIXES = (".png", ".svg", ".gif", ".jpg", ".jpeg", ".webp", ".ico", ".avif")
_BADGE_PARTS = re.compile(r"(?:^|[./-])badges?(?:[./-]|$)|(?:^|\.)shields\.io$|(?:^|\.)badgen\.net$")
_FORGE_ITEM = re.compile(r"^/[^/]+/[^/]+/(?:-/)?(?:issues|pull|commits?|compare|discussions|merge_requests)/.")
_TRACKING = re.compile(r"^(?:utm_.*|ref|fbclid|gclid)$", re.IGNORECASE)
_RESERVED_HOSTS = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net))?|localhost|test|invalid|local)$")


def find_urls(text: str) -> Iterator[FoundURL]:
    """Find the web addresses of a text, in order.

    Left out are images and badges, which say nothing about the text's subject, the single issues and
    commits that a changelog lists by the hundred, and addresses that lead nowhere (example.com, localhost,
    private networks).
    """
    for match in _URL.finditer(text):
        url = _without_trailing_punctuation(match[0])
        before = text[max(0, match.start() - 160) : match.start()]
        if not _is_public(url) or _is_noise(url) or _RST_IMAGE.search(before):
            continue
        label = _MARKDOWN_LABEL.search(before) or _RST_LABEL.search(before)
        if label and label.groupdict().get("image"):
            continue
        yield FoundURL(
            url=url,
            start=match.start(),
            end=match.start() + len(url),
            label=" ".join(label["label"].split()) if label else None,
        )


def canonical_url(url: str) -> str | None:
    """Normalise a web address, without its scheme; return None for anything else.

    `http` and `https`, a `www.`, letter case of the host, the default port, a trailing slash or `.git`, a
    fragment, and parameters that only track visitors make no difference. A user name or password in it is
    taken out.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return None
    if parts.scheme.lower() not in ("http", "https") or not re.fullmatch(r"[^\s/@:%]+|[0-9a-f:.]+", host):
        return None
    host = f"[{host}]" if ":" in host else re.sub(r"^(?:www\.)+", "", host)
    if port is not None and port not in (80, 443):
        host = f"{host}:{port}"
    path = re.sub(r"(?:/|\.git)+$", "", quote(parts.path, safe="/:@!$&'()*+,;=~-._%"))
    path = re.sub(r"%[0-9a-fA-F]{2}", lambda escape: escape[0].upper(), path)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _TRACKING.match(pair[0])]
    return host + path + (f"?{urlencode(query)}" if query else "")


def public_form(url: str) -> str:
    """Return the address in a form to show: without user name, password and fragment."""
    parts = urlsplit(url.strip())
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def _without_trailing_punctuation(url: str) -> str:
    """Remove a sentence's punctuation from the end of a URL; a closing bracket stays if the URL opens it."""
    while url:
        last = url[-1]
        if last in ".,;:!?*_~" or (last in ")]" and url.count(last) > url.count("(" if last == ")" else "[")):
            url = url[:-1]
        else:
            break
    return url


def _is_public(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host.strip(".") and not _RESERVED_HOSTS.search(host)


def _is_noise(url: str) -> bool:
    """Return whether the address is a picture, a badge, or one item of a code forge."""
    parts = urlsplit(url)
    path = parts.path.lower()
    badge = _BADGE_PARTS.search(parts.netloc.lower()) or _BADGE_PARTS.search(path)
    return path.endswith(_IMAGE_SUFFIXES) or bool(badge) or bool(_FORGE_ITEM.match(path))
