"""The Chromium that the lane `browser` drives: the system's, which is looked for, and never downloaded.

python -m tests.browser.chromium    # print its path; fail where there is none, and say how to install one
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

HOW_TO_INSTALL: Final = (
    f"no Chromium was found: none of {', '.join(NAMES)} is on the PATH, and CHROMIUM names none; on Debian: "
    "apt-get update && apt-get install -y chromium"
)


def executable() -> str | None:
    """Its path: of the one that CHROMIUM names, or else of the system's; None: there is none."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        if name and (found := shutil.which(name)):
            return found
    return None


if __name__ == "__main__":
    found = executable()
    print(found or HOW_TO_INSTALL)
    sys.exit(found is None)
