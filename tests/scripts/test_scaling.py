"""Scaling: what is read from programs is what they do, and what is measured, modelled and kept are these figures."""

import dataclasses
import types

import bench
import compiled
import jax
import pytest
import scaling
import scaling_model
import speed_table

PNG = b"\x89PNG"
LARGEST_PICTURE = 150_000  # bytes: nine panels
PROGRAM = """HloModule by_hand, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%product (p: f32[4,3], q: f32[3,5]) -> f32[4,5] {
  %p = f32[4,3]{1,0} parameter(0)
  %q = f32[3,5]{1,0} parameter(1)
  ROOT %dot = f32[4,5]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner (state: f32[4,3]) -> f32[4,3] {
  %state = f32[4,3]{1,0} parameter(0)
  %fused = f32[4,5]{1,0} fusion(%state, %weights), kind=kCustom, calls=%product
  ROOT %exchanged = (f32[4,3]{1,0}, bf16[]) all-reduce(%state, %other), replica_groups={{0,1}}, to_apply=%add
}

%outer (state: f32[4,3]) -> f32[4,3] {
  %state.1 = f32[4,3]{1,0} parameter(0)
  ROOT %loop = f32[4,3]{1,0} while(%state.1), condition=%add, body=%inner, backend_config={"known_trip_count":{"n":"7"}}
}

ENTRY %main (state: f32[4,3]) -> f32[4,3] {
  %state.2 = f32[4,3]{1,0} parameter(0)
  %loops = f32[4,3]{1,0} while(%state.2), condition=%add, body=%outer, backend_config={"known_trip_count":{"n":"2"}}
  ROOT %all-gather.1 = f64[8,3]{1,0} all-gather(%loops), channel_id=1, dimensions={0}
}
"""


def row(**columns):
    counted = {"collectives in loops": 2, "collectives outside": 1, "bytes sent": 3_000_000}
    known = {"steps": 10, "arithmetic": 4_000_000, "devices": 4, "processes": 1, "scaling": "strong", "way": "jit"}
    return {name: str(value) for name, value in (counted | known | columns).items()}


def test_a_program_by_hand():
    """Fourteen rounds of the inner loop, two of the outer one."""
    found = compiled.work(PROGRAM)
    assert found.steps == 2 + 14
    assert found.arithmetic == 14 * 2 * 4 * 5 * 3
    assert found.collectives == [
        compiled.Collective("all-reduce", 4 * 3 * 4 + 2, 14, True),
        compiled.Collective("all-gather", 8 * 3 * 8, 1, False),
    ]
    assert [each.sent(2) for each in found.collectives] == [14 * 50, 96]
    with pytest.raises(ValueError, match="not known beforehand: loops"):
        compiled.work(PROGRAM.replace('{"n":"2"}', "{}"))


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_the_products_of_a_program_are_those_of_the_equations(cell):
    net, (params, inputs, targets, *_) = bench.problem(cell, shape := bench.Shape(6, 8, 5, 16, 7))
    text = jax.jit(scaling.jaxrnn.value_and_grad(net)).lower(params, inputs, targets).compile().as_text()
    assert compiled.work(text).arithmetic == bench.flops(cell, shape)


def test_the_model_by_hand():
    machine = scaling_model.Machine(step=1, rate=2, latency=3, hop=0.5, bandwidth=10)
    assert machine.microseconds(row()) == 10 * 1 + 4 / 2 + 3 * (3 + 6 * 0.5) + 3_000_000 / 10_000
    assert machine.microseconds(row(devices=1, **{"bytes sent": 0})) == 12
    rows = [row(devices=1, **{"bytes sent": 0}), row(devices=4), row(devices=4, processes=2, steps=99)]
    assert scaling_model.speed_up(rows, "strong", "jit", machine) == {1: 1, 4: 12 / 330}
    weak = [each | {"scaling": "weak"} for each in rows]
    assert scaling_model.speed_up(weak, "weak", "jit", machine) == {1: 1, 4: 4 * 12 / 330}
    assert set(scaling_model.SOURCES) == {field.name for field in dataclasses.fields(machine)}


def test_speed_ups_are_medians_over_turns_and_count_the_larger_work():
    names = dict(zip(("cell", *bench.Shape._fields, "way"), "elman123456w", strict=False))
    rows = [names | {"scaling": scaling, "devices": 2, "way": "jit"} for scaling in ("strong", "weak")]
    alone = types.SimpleNamespace(rows=rows, turns=[[4.0, 4.0], [9.0, 9.0], [2.0, 2.0]])
    team = types.SimpleNamespace(rows=[dict(each) for each in rows], turns=[[2.0, None], [3.0, None], [2.0, 8.0]])
    scaling.add_times(team, alone)
    assert [each["speed-up"] for each in team.rows] == [2.0, 0.5]
    assert [each["ms"] for each in team.rows] == [2000, 8000]


def test_a_quick_run(call, capsys, tmp_path):
    """On one device and two: data_parallel sums once, whatever there is to sum; autodiff sums in its loop."""
    call(scaling, "--quick", "--out", tmp_path)
    rows = speed_table.read(tmp_path / "scaling.csv")
    assert len(rows) == 2 * 2 * 3
    two = {(each["way"], each["scaling"]): each for each in rows if each["devices"] == "2"}
    gradient = 4 * (8 * 4 + 8 * 8 + 8 + 4 * 8 + 4) + 4  # and the loss
    for kind in ("strong", "weak"):
        summed = two["data_parallel", kind]
        assert (summed["collectives in loops"], summed["collectives outside"]) == ("0", "1")
        assert summed["bytes outside"] == summed["bytes sent"] == str(gradient)
        assert two["autodiff", kind]["collectives in loops"] == "8"
    assert int(two["data_parallel", "weak"]["arithmetic"]) == 2 * int(two["data_parallel", "strong"]["arithmetic"])
    assert (tmp_path / "scaling.png").read_bytes().startswith(PNG)
    assert "weak scaling, Elman 8, 8, 4, 8, 4" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_do_what_two_devices_do():
    team = scaling.Team(scaling.Spread(2, processes=2), scaling.QUICK_CASES, timed=True)
    rows = team.start()
    team.turn()
    team.dismiss()
    assert {each["collectives outside"] for each in rows if each["way"] == "data_parallel"} == {1}
    assert all(seconds > 0 for seconds in team.turns[0])
    assert [member.returncode for member in team.members] == [0, 0]


def test_the_kept_results_and_their_picture():
    rows = speed_table.read(scaling_model.RESULTS)
    assert {(each["devices"], each["processes"]) for each in rows} == {
        tuple(map(str, each)) for each in scaling.SPREADS
    }
    for each in rows:
        assert all(each[name] for name in ("processor", "jax", "date"))
        if each["way"] == "data_parallel":
            assert (each["collectives in loops"], each["collectives outside"]) == ("0", "1")
    kept = scaling_model.PICTURE.read_bytes()
    assert kept.startswith(PNG)
    assert len(kept) < LARGEST_PICTURE


def test_wrong_use(call, capsys):
    for module, arguments, message in (
        (scaling, ["--seconds", 0], "--seconds must be positive"),
        (scaling_model, ["missing.csv"], "no file 'missing.csv'"),
    ):
        with pytest.raises(SystemExit):
            call(module, *arguments)
        assert message in capsys.readouterr().err
