"""Progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm.std import tqdm


def progress_bar(total: int, *, shown: bool) -> tqdm:
    """A bar over `total` steps that clears itself; does nothing unless `shown`."""
    # the notebook's bar warns at import where its widgets are not installed
    if shown:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm

    return tqdm(total=total, disable=not shown, leave=False, desc="fit")
