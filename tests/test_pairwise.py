"""The covering sets of `pairwise`: every pair that can be, none that cannot, and far fewer rows than the product."""

import itertools

from pairwise import label, pairwise

OPTIONS = {"a": (1, 2, 3), "b": ("x", "y"), "c": (False, True), "d": (1, 2, 3), "e": (None, "z")}


def pairs(rows):
    return {pair for row in rows for pair in itertools.combinations(row.items(), 2)}


def product(allowed=lambda row: True):
    rows = (dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values()))
    return [row for row in rows if allowed(row)]


def test_all_pairs_meet_in_few_rows():
    rows = pairwise(OPTIONS)
    assert pairs(rows) == pairs(product())
    assert len(rows) <= 12  # of 72; nine at least, for a and d
    assert rows == pairwise(OPTIONS)


def test_what_is_excluded_does_not_occur_and_nothing_else_is_lost():
    """c = True needs a = 1, and a = 1 needs d = 2: that c = True and d = 3 exclude each other is said by neither."""

    def allowed(row):
        return (not row.get("c") or row.get("a", 1) == 1) and (row.get("a") != 1 or row.get("d", 2) == 2)

    rows = pairwise(OPTIONS, allowed)
    assert all(allowed(row) for row in rows)
    assert pairs(rows) == pairs(product(allowed))


def test_a_row_is_named_by_what_it_asks_for():
    assert label({"a": 3, "b": "x", "c": True, "e": None}) == "a=3 b=x c"
