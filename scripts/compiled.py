"""Reads what a compiled program does on every device: its loops, its collectives, its matrix products.

It reads the text of XLA's program for the CPU as it was divided among the devices, `compiled.as_text()`. What stands in
a loop counts as often as the loop goes round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.+?) (?P<operation>[a-z][a-z-]*)\((?P<rest>.*)$"
)
HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
STEPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """Holds one line of a program."""

    name: str
    shape: str  # of the result, as "f32[8,64]{1,0}"
    operation: str
    rest: str  # operands and attributes


class Collective(NamedTuple):
    """Holds one exchange between devices: how large its result is on each, and how often it happens."""

    kind: str
    bytes: int
    times: int
    in_loop: bool

    def sent(self, devices: int) -> float:
        """Computes the bytes that each device sends in all, where the devices stand in a ring."""
        others = devices - 1
        share = {"all-reduce": 2 * others / devices, "reduce-scatter": others, "collective-permute": 1}
        return self.times * self.bytes * share.get(self.kind, others / devices)


class Work(NamedTuple):
    """Holds what a program does on every device."""

    steps: int  # rounds of all its loops
    arithmetic: int  # operations of its matrix products
    collectives: list[Collective]


def work(text: str) -> Work:
    """Reads what a program does from its text."""
    computations, entry = _computations(text)
    steps, arithmetic, collectives = 0, 0, []
    for line, times, in_loop in _walk(computations, entry):
        if line.operation == "while":
            steps += times * _steps(line)
        elif line.operation == "dot":
            shapes = {each.name: each.shape for body in computations.values() for each in body}
            arithmetic += times * _product(line, shapes)
        elif line.operation in COLLECTIVES:
            collectives.append(Collective(line.operation, _size(line.shape), times, in_loop))
    return Work(steps, arithmetic, collectives)


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Cuts a program into its computations by name, and returns the name of the one that is called first."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = header["name"]
            computations[current] = []
            entry = current if header["entry"] else entry
        elif found := INSTRUCTION.match(line):
            computations[current].append(Instruction(*found.groups()))
    return computations, entry


def _walk(
    computations: dict[str, list[Instruction]], name: str, times: int = 1, in_loop: bool = False
) -> Iterator[tuple[Instruction, int, bool]]:
    """Yields every instruction that a computation comes to, how often, and whether within a loop."""
    for line in computations[name]:
        yield line, times, in_loop
        loop = line.operation == "while"
        for names in CALLED.findall(line.rest):
            for called in re.findall(r"[\w.-]+", names):
                if called in computations:
                    yield from _walk(computations, called, times * (_steps(line) if loop else 1), in_loop or loop)


def _steps(line: Instruction) -> int:
    """Reads how often a loop goes round."""
    found = STEPS.search(line.rest)
    if found is None:
        raise ValueError(f"the program has a loop whose number of steps is not known beforehand: {line.name}")
    return int(found[1])


def _size(shape: str) -> int:
    """Computes the bytes of an array, or of a tuple of arrays."""
    return sum(BYTES[kind] * math.prod(_numbers(sizes)) for kind, sizes in SHAPE.findall(shape))


def _sizes(shape: str) -> list[int]:
    """Reads the sizes of an array's axes."""
    return _numbers(SHAPE.findall(shape)[0][1])


def _numbers(text: str) -> list[int]:
    """Reads numbers between commas."""
    return [int(number) for number in text.split(",") if number]


def _product(line: Instruction, shapes: dict[str, str]) -> int:
    """Counts the operations of a matrix product: one multiplication and one addition a term."""
    left = re.findall(r"%?([\w.-]+)", line.rest.split(")")[0].split(",")[0])[-1]
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
    contracted = _numbers(axes[1]) if axes else []
    sizes = _sizes(shapes[left])
    return 2 * math.prod(_sizes(line.shape)) * math.prod(sizes[axis] for axis in contracted)
