"""Names that lie in one text: as a list of them, whichever part is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.names import Names

TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=9)


def names_of(texts: list[str]) -> Names:
    return Names(b"".join(text.encode() + b"\0" for text in texts))


@given(TEXTS, st.data())
def test_names_are_those_of_the_list(texts: list[str], data: st.DataObject) -> None:
    names = names_of(texts)
    start = data.draw(st.integers(0, len(texts)))
    stop = data.draw(st.integers(start, len(texts)))
    for some, expected in ((names, texts), (names.part(start, stop), texts[start:stop])):
        assert len(some) == len(expected)
        assert list(some) == expected
        assert some[1:] == expected[1:]
        assert some[-3:] == expected[-3:]
        if expected:
            assert (some[0], some[-1]) == (expected[0], expected[-1])
        with pytest.raises(IndexError):
            some[len(expected)]
