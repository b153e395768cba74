"""What was tried against runs, commands and calls, and what came of it: a line for each, and a table of them.

    python tests/fault_table.py FILE...    # prints the table of all that these files hold; 1 where anything was lost

Tests write a line as soon as something was tried, so that a session that is cut off counts as far as it came. The
environment variable JAXRNN_FAULTS says into which file; sessions that it names the same one add up.
"""

import argparse
import collections
import json
import os
import pathlib
import sys
import tempfile
import time

COLUMNS = ("tried", "survived", "noticed", "lost")
# survived: in the end all is as without the fault. noticed: an error or a line says so. lost: neither.


class Table:
    """Counts what came of faults, and keeps a line of each in a file."""

    def __init__(self, path=None):
        default = pathlib.Path(tempfile.gettempdir()) / "jaxrnn-faults.jsonl"
        self.path = pathlib.Path(path or os.environ.get("JAXRNN_FAULTS") or default)
        self.counts = collections.defaultdict(collections.Counter)

    def add(self, fault, outcome, **details):
        """Adds a fault that was tried: it was survived, noticed, or something was lost."""
        self._count(fault, outcome)
        with open(self.path, "a") as file:
            file.write(json.dumps({"fault": fault, "outcome": outcome, "time": time.time(), **details}) + "\n")

    def read(self):
        """Counts what the file holds; a last line that was cut off is left out."""
        for line in self.path.read_text().split("\n")[:-1]:
            row = json.loads(line)
            self._count(row["fault"], row["outcome"])
        return self

    def lost(self, fault):
        """Returns how often something was lost."""
        return self.counts[fault]["lost"]

    def lines(self):
        """Returns the table, by the names of the faults, and below it the sums."""
        width = max(map(len, self.counts), default=0) + 2
        rows = {**dict(sorted(self.counts.items())), "all": sum(self.counts.values(), collections.Counter())}
        head = f"{'':{width}}" + "".join(f"{name:>10}" for name in COLUMNS)
        return [head, *(f"{fault:{width}}" + "".join(f"{n[c]:>10}" for c in COLUMNS) for fault, n in rows.items())]

    def _count(self, fault, outcome):
        assert outcome in COLUMNS[1:], outcome
        self.counts[fault].update(["tried", outcome])


def main():
    """Prints the table of some files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="what JAXRNN_FAULTS named")
    table = Table()
    for path in parser.parse_args().files:
        table.path = pathlib.Path(path)
        table.read()
    print("\n".join(table.lines()))
    sys.exit(1 if sum(counts["lost"] for counts in table.counts.values()) else 0)


if __name__ == "__main__":
    main()
