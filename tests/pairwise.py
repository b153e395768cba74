"""Covering sets: few rows in which every two values of different options meet, in place of the full product."""

import itertools


def pairwise(options, allowed=lambda row: True):
    """Returns rows in which every pair of values occurs that any allowed row holds.

    Args:
        options: the values of every option, by its name.
        allowed: says of a dict, which may hold some of the options only, whether it can be (part of) a row.
    """
    pairs = [((a, x), (b, y)) for a, b in itertools.combinations(options, 2) for x in options[a] for y in options[b]]
    uncovered, rows = dict.fromkeys(pairs), []
    while uncovered:
        first = next(iter(uncovered))
        row = complete(dict(first), options, allowed, uncovered) if allowed(dict(first)) else None
        if row is None:  # no allowed row holds this pair
            del uncovered[first]
            continue
        rows.append({name: row[name] for name in options})
        for pair in itertools.combinations(rows[-1].items(), 2):
            uncovered.pop(pair, None)
    return rows


def complete(row, options, allowed, uncovered):
    """Returns the row with a value for every option, each the one that meets most new pairs, or None."""
    name = next((name for name in options if name not in row), None)
    if name is None:
        return row
    held = list(row.items())

    def met(value):
        return sum((item, (name, value)) in uncovered or ((name, value), item) in uncovered for item in held)

    for value in sorted(options[name], key=met, reverse=True):
        wider = {**row, name: value}
        found = complete(wider, options, allowed, uncovered) if allowed(wider) else None
        if found is not None:
            return found
    return None


def label(row):
    """Returns a short name of a row for the list of tests: its values that are not those that say "left out"."""
    shown = {name: value for name, value in row.items() if value not in (False, None, "auto", "none")}
    return " ".join(name if value is True else f"{name}={value}" for name, value in shown.items())
