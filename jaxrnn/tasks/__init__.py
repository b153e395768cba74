"""Sequences to learn, and the tasks by name: what `jaxrnn train --task` can be given."""

from __future__ import annotations

from jaxrnn.tasks.adding import Adding
from jaxrnn.tasks.base import Task
from jaxrnn.tasks.chorales import Chorales
from jaxrnn.tasks.copy_memory import CopyMemory
from jaxrnn.tasks.digits import Digits, PermutedDigits
from jaxrnn.tasks.reber import EmbeddedReber
from jaxrnn.tasks.temporal_order import TemporalOrder
from jaxrnn.tasks.text import NextCharacter

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (NextCharacter, Chorales, Adding, CopyMemory, TemporalOrder, EmbeddedReber, Digits, PermutedDigits)
}
