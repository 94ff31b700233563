"""What is written in a figure: every text that is drawn, and where."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING
from unittest import mock

from matplotlib.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


@dataclass(frozen=True)
class DrawnTexts:
    """Words and boxes, in pixels, of the texts in a figure, whose own box is `frame`."""

    frame: Bbox
    words: list[str]
    boxes: list[Bbox]

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of texts whose boxes share more than a pixel."""
        pairs = combinations(zip(self.words, [box.padded(-0.5) for box in self.boxes], strict=True), 2)
        return [(one, other) for (one, box), (other, theirs) in pairs if box.overlaps(theirs)]

    def cut_off(self) -> list[str]:
        """Texts that reach over the edge of the figure."""
        low, high = self.frame.padded(1).get_points()
        return [
            text
            for text, box in zip(self.words, self.boxes, strict=True)
            if (box.min < low).any() or (box.max > high).any()
        ]


def drawn_texts(figure: Figure) -> DrawnTexts:
    """The texts that are drawn: not those that are hidden, empty, or of ticks outside the axes."""
    found = DrawnTexts(figure.bbox, [], [])
    draw = Text.draw

    def noted(self: Text, renderer: object, *args: object, **kwargs: object) -> object:
        if self.get_visible() and self.get_text().strip():
            found.words.append(self.get_text())
            # of an annotation, the words without its arrow
            found.boxes.append(Text.get_window_extent(self, renderer))
        return draw(self, renderer, *args, **kwargs)

    with mock.patch.object(Text, "draw", noted):
        figure.draw_without_rendering()
    return found
