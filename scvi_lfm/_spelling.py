"""What a name that is not there may have meant."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# what other packages call our choices
SYNONYMS = {
    "gaussian": "normal",
    "nb": "negative_binomial",
    "zinb": "negative_binomial",
    "negbinom": "negative_binomial",
    "neg_binomial": "negative_binomial",
    "zip": "poisson",
    "t": "student_t",
    "student": "student_t",
    "binary": "bernoulli",
    "binomial": "bernoulli",
}
SHOWN, LIKE = 3, 0.6
# beyond so many, only those that begin alike are looked for
MOST_SPELLINGS = 100_000


def near_matches(name: object, options: Iterable[object]) -> str:
    """One sentence that names what `name` may have meant, or what there is."""
    # anndata's layers may hold X, under None
    choices = [str(option) for option in options if option is not None]
    close = nearest(str(name), choices)
    if close:
        return f"Did you mean {', '.join(map(repr, close))}?"
    if not choices:
        return "There are none."
    shown = ", ".join(map(repr, choices[:10]))
    return f"There are: {shown}{f' and {len(choices) - 10:,} more' if len(choices) > 10 else ''}."


def nearest_choice(name: str, options: Sequence[str]) -> str | None:
    """The one of a few options that `name` may have meant."""
    word = name.strip().lower().replace("-", "_").replace(" ", "_")
    meant = SYNONYMS.get(word)
    return meant if meant in options else next(iter(nearest(word, options)), None)


def nearest(name: str, choices: Sequence[str]) -> list[str]:
    """Likely names, at most three: the same in another case; else those that `name` begins, then other spellings."""
    wanted = name.strip().casefold()
    if not wanted:
        return []
    folded = {choice: choice.strip().casefold() for choice in choices}
    same = [choice for choice, other in folded.items() if other == wanted]
    begun = [choice for choice, other in folded.items() if len(wanted) > 1 and other.startswith(wanted)]
    if same:
        return same[:SHOWN]
    near = dict.fromkeys(sorted(begun, key=lambda choice: _rest(wanted, folded[choice])))
    if len(near) < SHOWN and len(choices) <= MOST_SPELLINGS:
        near |= dict.fromkeys(_spelled_alike(wanted, folded))
    return list(near)[:SHOWN]


def _rest(wanted: str, choice: str) -> tuple[bool, int, str]:
    """Short rests first, and last those that make another number: CD3 is less like CD33 than like CD3E."""
    rest = choice[len(wanted) :]
    return wanted[-1].isdigit() and rest[:1].isdigit(), len(rest), rest


def _spelled_alike(wanted: str, folded: dict[str, str]) -> list[str]:
    """The most alike first, of equals those of the same letters; then in their own order."""
    matcher = SequenceMatcher(b=wanted, autojunk=False)
    likeness = {}
    for choice, other in folded.items():
        matcher.set_seq1(other)
        # the first two are quick upper bounds of the third
        if all(bound() >= LIKE for bound in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)):
            likeness[choice] = matcher.ratio(), matcher.quick_ratio()
    return sorted(likeness, key=likeness.__getitem__, reverse=True)
