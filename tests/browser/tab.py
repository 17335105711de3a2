"""A tab of the browser that shows the page: opened with a token, watched for faults, looked at by axe."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, NamedTuple

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request, ViewportSize
from tests.browser import node
from tests.web.servers import TOKEN

SCREENSHOTS: Final = Path(__file__).parents[2] / "build" / "browser"

_SIZES: Final[dict[str, ViewportSize]] = {
    "desktop": {"width": 1280, "height": 900},
    "phone": {"width": 360, "height": 740},
}

_SERVER_GONE: Final = tuple(
    f"net::ERR_{name}"
    for name in (
        *("CONNECTION_REFUSED", "CONNECTION_RESET", "CONTENT_LENGTH_MISMATCH"),
        *("EMPTY_RESPONSE", "INCOMPLETE_CHUNKED_ENCODING"),
    )
)
"""What the browser says of a server that a test has ended."""

_AXE: Final = """
axe.run(document, {
  runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
  // What is in order is not described: that would take most of the time.
  resultTypes: ["violations"], selectors: false,
}).then((found) => found.violations.flatMap((each) => each.nodes.map((node) => `${each.id}: ${node.html}`)))
"""

_CONTRASTS: Final = """
() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const value = Number(part) / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(".machine g")].map((state) => {
    const text = light(getComputedStyle(state.querySelector("text")).fill);
    const ground = light(getComputedStyle(state.querySelector("rect")).fill);
    return [state.textContent, (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05)];
  });
}
"""


class Looks(NamedTuple):
    """What a tab looks like."""

    device: Literal["desktop", "phone"]
    scheme: Literal["light", "dark"]

    def __str__(self) -> str:
        return f"{self.device}-{self.scheme}"


DESKTOP: Final = Looks("desktop", "light")
"""What a tab looks like when it is opened."""


class Tab:
    """One tab."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.faults: list[str] = []
        """What went wrong in it: errors, what its security policy refused, dialogs that nobody asked for."""
        self.allowed: list[str] = []
        """Parts of faults that belong to a test."""
        self.requested: list[str] = []
        """The addresses that it asked for."""
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("dialog", self._asked)
        page.on("request", self._requests)
        self._answers: list[bool] = []

    async def text(self, selector: str) -> str:
        """The text of an element, also within a picture."""
        locator = self.page.locator(selector)
        if await locator.evaluate("(element) => element instanceof SVGElement"):
            return await locator.text_content() or ""
        return await locator.inner_text()

    async def look(self, looks: Looks) -> None:
        """Look at it on another device, or in another light."""
        await self.page.set_viewport_size(_SIZES[looks.device])
        await self.page.emulate_media(color_scheme=looks.scheme)

    async def hide(self, hidden: bool = True) -> None:
        """Have the page believe that another tab is in front of it, or no longer; no headless browser does that."""
        await self.page.evaluate(
            """(hidden) => {
              Object.defineProperty(document, "hidden", { configurable: true, value: hidden });
              document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    async def violations(self) -> list[str]:
        """What axe finds."""
        # By the debugger, which the page's security policy does not concern.
        if not await self.page.evaluate("'axe' in window"):
            await self.page.evaluate(f"{node.source('axe-core/axe.min.js')};0")
        found: list[str] = await self.page.evaluate(_AXE)
        return found

    async def contrasts(self) -> dict[str, float]:
        """The contrast of each state in the picture, which axe does not look into."""
        found: list[tuple[str, float]] = await self.page.evaluate(_CONTRASTS)
        return dict(found)

    async def is_too_wide(self) -> bool:
        """Whether it has to be scrolled to the side."""
        wide: bool = await self.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        return wide

    async def screenshot(self, name: str) -> None:
        """Leave a picture of all of it."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    async def picture(self, name: str) -> None:
        """Leave a picture of its upper part, for the README."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(
            path=SCREENSHOTS / f"{name}.png", clip={"x": 120, "y": 0, "width": 1040, "height": 620}
        )

    def answer(self, accept: bool) -> None:
        """Answer the next dialog."""
        self._answers.append(accept)

    def unexpected(self) -> list[str]:
        """The faults that no test has allowed."""
        allowed = (*_SERVER_GONE, *self.allowed)
        return [fault for fault in self.faults if not any(part in fault for part in allowed)]

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text}")

    async def _asked(self, dialog: Dialog) -> None:
        if not self._answers:
            self.faults.append(f"dialog: {dialog.message}")
            await dialog.dismiss()
        elif self._answers.pop(0):
            await dialog.accept()
        else:
            await dialog.dismiss()

    def _requests(self, request: Request) -> None:
        self.requested.append(request.url)


class Tabs:
    """Opens tabs, in the light and on a desktop, and closes them.

    Each test has them in the one window of all tests, where a tab costs half as much as in a new one: what a page keeps
    is its tab's, and goes with it. A test that changes the window itself has one of its own.

    Args:
        window: The window of all tests.
    """

    def __init__(self, window: BrowserContext) -> None:
        self._window = window
        self._own: list[BrowserContext] = []
        self._tabs: list[Tab] = []

    async def open(self, url: str, *, token: str = TOKEN, own_window: bool = False) -> Tab:
        """Open the page."""
        window = self._window
        if own_window:
            assert window.browser is not None
            window = await new_window(window.browser)
            self._own.append(window)
        return await self._open_in(window, f"{url}#token={token}" if token else url)

    async def beside(self, tab: Tab, url: str) -> Tab:
        """Open another tab of the same window, at this very address."""
        return await self._open_in(tab.page.context, url)

    async def _open_in(self, window: BrowserContext, address: str) -> Tab:
        tab = Tab(await window.new_page())
        self._tabs.append(tab)
        await tab.page.goto(address)
        return tab

    async def close(self) -> None:
        """Close all; none of them must have had a fault, nor leave anything in the window."""
        for window in self._own:
            await window.close()
        for tab in self._tabs:
            await tab.page.close()
        # Of the local storage, a test of its own says that there is nothing in it.
        assert await self._window.cookies() == []
        faults = {tab.page.url: faults for tab in self._tabs if (faults := tab.unexpected())}
        if faults:
            raise AssertionError(faults)


async def new_window(browser: Browser) -> BrowserContext:
    """Make a window, which shares nothing with another."""
    return await browser.new_context(
        viewport=_SIZES[DESKTOP.device],
        color_scheme=DESKTOP.scheme,
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",
    )
