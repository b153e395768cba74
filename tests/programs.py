"""What a function is compiled to: its loops, what it moves between devices, and the memory that it takes."""

import math
import re

import jax
import jax.numpy as jnp

import jaxrnn

# What a user compiles with: without the flags by which conftest.py makes the compiler hurry.
OPTIMISED = {"xla_backend_optimization_level": 3}


def loops(jaxpr):
    """Returns the lengths of all scans, wherever they stand but in the branches of a cond."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append(equation.params["length"])
        if equation.primitive.name != "cond":
            inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
            found += [length for each in inner if hasattr(each, "eqns") for length in loops(each)]
    return found


def loops_of(function, *arguments):
    """Returns the lengths of all scans of a function."""
    return loops(jax.make_jaxpr(function)(*arguments).jaxpr)


def compiled_bytes(net, inputs, masked=False, **options):
    """Returns the temporary memory of a loss and its gradient in bytes, as the compiler says it.

    Args:
        net: the network.
        inputs: their shape, as a `jax.ShapeDtypeStruct`.
        masked: whether there is a mask.
        options: of `jaxrnn.value_and_grad`.
    """
    params = jax.eval_shape(net.init, jax.random.key(0))
    targets = jax.ShapeDtypeStruct(inputs.shape[:2], jnp.int32)
    mask = jax.ShapeDtypeStruct(inputs.shape[:2], bool) if masked else None
    function = jaxrnn.value_and_grad(net, **options)
    lowered = jax.jit(lambda p, x, y, m: function(p, x, y, mask=m)).lower(params, inputs, targets, mask)
    return lowered.compile(compiler_options=OPTIMISED).memory_analysis().temp_size_in_bytes


def on_one_device(function, *arguments):
    """Compiles a function as where there is one device: with several, XLA must be able to spread a batch over them."""
    mesh, whole = jax.make_mesh((1,), ("one",), devices=jax.devices()[:1]), jax.sharding.PartitionSpec()
    mapped = jax.shard_map(function, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    return jax.jit(mapped).lower(*arguments).compile()


def loop_operations(exported):
    """Returns how many operations the body of every innermost loop has in an exported program, constants left out."""
    functions, name = {}, None
    for line in exported.mlir_module().splitlines():
        if begun := re.match(r"\s*func\.func.* @([\w.\-]+)\(", line):
            name = begun[1]
            functions[name] = []
        elif name:
            functions[name].append(line.strip())

    def count(lines):
        called = re.findall(r"call @([\w.\-]+)\(", "\n".join(lines))
        own = [line for line in lines if re.match(r"%\S+ = (?!stablehlo.constant)", line) and "call @" not in line]
        return len(own) + sum(count(functions[name]) for name in called)

    found = []
    for lines in functions.values():
        for i in [i for i, line in enumerate(lines) if line == "} do {"]:
            body = lines[i + 1 : i + 1 + _closing(lines[i + 1 :])]
            if "} do {" not in body:
                found.append(count(body))
    return found


def _closing(lines):
    """Returns the number of the line that closes the block which the lines are within."""
    depth = 1
    for i, line in enumerate(lines):
        depth += line.count("{") - line.count("}")
        if depth == 0:
            return i
    raise ValueError("the block is not closed")


def product_precisions(exported):
    """Returns how every matrix product of an exported program is to be computed, each way once; "" is the default."""
    products = re.findall(r"stablehlo\.dot_general .*", exported.mlir_module())
    asked = (
        re.search(r"precision = \[(\w+), \w+\]|algorithm = <lhs_precision_type = (\w+)", each) for each in products
    )
    return {"".join(filter(None, found.groups())) if found else "" for found in asked}


SIZES = {"pred": 1, "bf16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}


def collectives(compiled):
    """Returns what a compiled function moves between devices: kind, whether within a loop, and bytes of every one."""
    found, entry = [], False
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and not line.startswith(" "):
            entry = line.startswith("ENTRY")
        moved = re.search(r"= (.*?) (all-[a-z]+|reduce-scatter|collective-[a-z]+)(-start)?\(", line)
        if moved:
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"/\*.*?\*/|\{[\d,]*\}", "", moved[1]))
            size = sum(SIZES[kind] * math.prod(map(int, filter(None, shape.split(",")))) for kind, shape in arrays)
            found.append((moved[2], not entry, size))
    return found
