"""Progress bars."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm.std import tqdm


def progress_bar(total: int, *, shown: bool) -> tqdm:
    """A bar over `total` steps that clears itself; does nothing unless `shown`, and there is a screen to show it on."""
    shown = shown and sys.stderr is not None  # none under pythonw, and in some servers
    # the notebook's bar warns at import where its widgets are not installed
    if shown:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm

    return tqdm(total=total, disable=not shown, leave=False, desc="fit")
