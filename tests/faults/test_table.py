"""The table itself: it adds up over sessions, and a session that was cut off counts as far as it came."""

import sys

import fault_table
import pytest


def test_sessions_add_up(tmp_path, monkeypatch, capsys):
    for outcome in ("survived", "noticed", "survived"):
        fault_table.Table(tmp_path / "one.jsonl").add("a kill", outcome, at=1)
    fault_table.Table(tmp_path / "two.jsonl").add("a flip", "noticed")
    with open(tmp_path / "two.jsonl", "a") as file:
        file.write('{"fault": "a flip", "outc')
    monkeypatch.setattr(sys, "argv", ["fault_table.py", *(str(tmp_path / f"{name}.jsonl") for name in ("one", "two"))])
    with pytest.raises(SystemExit) as ended:
        fault_table.main()
    assert ended.value.code == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        list(fault_table.COLUMNS),
        ["a", "flip", "1", "0", "1", "0"],
        ["a", "kill", "3", "2", "1", "0"],
        ["all", "4", "2", "2", "0"],
    ]


def test_what_was_lost_is_told_by_the_exit_code(tmp_path, monkeypatch):
    fault_table.Table(tmp_path / "one.jsonl").add("a kill", "lost")
    monkeypatch.setattr(sys, "argv", ["fault_table.py", str(tmp_path / "one.jsonl")])
    with pytest.raises(SystemExit) as ended:
        fault_table.main()
    assert ended.value.code == 1
