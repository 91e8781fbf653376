"""Which tests are left out of the default run: a choice that is written down must choose something."""

import pytest
import slow

NAMES = [
    "a/test_a.py::test_one[cnn-xla]",
    "a/test_a.py::test_one[cnn-graph]",
    "a/test_a.py::test_two",
    "b/test_b.py::test_one",
]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["test_one[*-xla]"], NAMES[:1]),
        (["test_one*"], NAMES[:2]),
        (["test_two", "*graph]"], NAMES[1:3]),
        (["test_one"], []),
    ],
)
def test_patterns_match_within_their_file(patterns, expected):
    found, _ = slow.chosen({"a/test_a.py": patterns}, NAMES)
    assert found == set(expected)


def test_patterns_of_all_files():
    found, _ = slow.chosen({"*": ["test_one*"]}, NAMES)
    assert found == {NAMES[0], NAMES[1], NAMES[3]}


def test_a_pattern_that_matches_nothing_is_told_where_its_file_was_collected():
    table = {"a/test_a.py": ["test_two", "test_three"], "c/test_c.py": ["test_one"]}
    assert slow.chosen(table, NAMES)[1] == ["a/test_a.py::test_three"]


def test_every_line_of_the_table_matches_a_test(request):
    assert not request.config.stash[slow.IDLE], "correct or remove them in tests/kit/slow.py"


def test_marks_are_given(request):
    """The item of a slow test carries the mark that `-m` looks at, and no other does."""
    names = {item: item.nodeid.removeprefix("tests/") for item in request.session.items}
    listed, _ = slow.chosen(slow.SLOW, names.values())
    assert listed == {name for item, name in names.items() if item.get_closest_marker("slow") is not None}
