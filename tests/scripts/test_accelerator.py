"""The experiment for accelerators: its contenders compute the same, and a quick run comes to its end on a CPU."""

import csv
import functools
import types

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(scope="module")
def contenders(accelerator):
    import accelerator_contenders

    return accelerator_contenders


def largest_error(accelerator, make, cell):
    """Returns how far a case is from the truth of its own problem in float64."""
    program = accelerator.program_of(make(cell, accelerator.SMALL))
    E, grads = program.call()
    return max(accelerator.errors(accelerator.truth(cell, make), (E, program.as_ours(grads))))


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("library", ["flax", "torch"])
def test_other_libraries_compute_the_same(accelerator, contenders, library, cell):
    pytest.importorskip(library)
    on_cpu = functools.partial(contenders.torch_layer, device="cpu")
    assert largest_error(accelerator, contenders.by_flax if library == "flax" else on_cpu, cell) < 1e-5


def test_the_lstm_of_cudnn_gets_its_weights_as_its_reference_reads_them(accelerator, contenders, monkeypatch):
    from jax.experimental import rnn

    def lstm(x, h_0, c_0, weights, seq_lengths, *options):
        unpacked = rnn.unpack_lstm_weights(weights, *options[:3], options[4])
        return rnn.lstm_ref(x, h_0, c_0, *unpacked, seq_lengths, *options)

    monkeypatch.setattr(rnn, "lstm", lstm)
    assert largest_error(accelerator, lambda _, shape: contenders.cudnn_lstm(shape), "lstm") < 1e-5


def test_the_lstm_of_cudnn_has_a_program_for_cuda(contenders, monkeypatch):
    """The plugin for CUDA, which is not there, only says how large the workspace is and packs the sizes."""
    from jax.experimental import rnn
    from jax.interpreters import mlir

    gpu_rnn = pytest.importorskip("jaxlib.gpu_rnn")
    monkeypatch.setattr(gpu_rnn, "compute_rnn_workspace_reserve_space_sizes", lambda *_: (8, 16), raising=False)
    plugin = types.SimpleNamespace(build_rnn_descriptor=lambda *_: b"sizes")
    if not gpu_rnn._cuda_rnn:
        for primitive, rule in (
            (rnn.rnn_fwd_p, gpu_rnn._rnn_fwd_lowering),
            (rnn.rnn_bwd_p, gpu_rnn._rnn_bwd_lowering),
        ):
            mlir.register_lowering(primitive, functools.partial(rule, plugin, "cu"), platform="cuda")
    case = contenders.cudnn_lstm(contenders.Shape(5, 3, 4, 6, 7))
    allowed = jax.export.DisabledSafetyCheck
    checks = [allowed.custom_call(f"cudnn_rnn{way}_ffi") for way in ("", "_bwd")]
    exported = jax.export.export(jax.jit(case.function), platforms=["cuda"], disabled_checks=checks)(*case.arguments)
    text = exported.mlir_module()
    assert "@cudnn_rnn_ffi" in text
    assert "@cudnn_rnn_bwd_ffi" in text
    assert [leaf.shape for leaf in exported.out_avals[1:]] == [
        leaf.shape for leaf in jax.tree.leaves(case.arguments[0])
    ]


def test_a_quick_run_comes_to_its_end_and_says_only_what_it_measured(accelerator, contenders, call, tmp_path, capsys):
    call(accelerator, "--quick", "--cells", "elman", "--out", tmp_path)
    with open(tmp_path / "accelerator-cpu-quick.csv", newline="") as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
    assert list(rows) == [name for name in contenders.ALL if not name.startswith("cuDNN in jax")]
    table = (tmp_path / "accelerator-cpu-quick.md").read_text()
    for name, row in rows.items():
        assert row["platform"].startswith("cpu")
        assert (f"| {name} | {row['ms']} |" if row["ms"] else f"| {name} | {row['status']} |") in table
        if row["status"] == "measured":
            assert float(row["ms"]) > 0
            assert float(row["gradient error"]) < (0.1 if "bfloat16" in name else 1e-4)
    unmeasured = {name for name, row in rows.items() if row["status"] != "measured"}
    assert unmeasured <= {"cuDNN in torch", "flax nnx.RNN"}
    assert (tmp_path / "accelerator-cpu-quick.png").read_bytes().startswith(b"\x89PNG")
    assert "saved" in capsys.readouterr().out


def test_the_plain_question_comes_first_and_every_cell_has_its_turn(accelerator, contenders):
    problems = list(accelerator.plan(["lstm", "gru-before"], quick=False))
    first = [(each.cell, each.name) for each in problems[:9]]
    assert first[:6] == [("lstm", name) for name in contenders.PLAIN]
    assert first[6:] == [("gru-before", name) for name in list(contenders.PLAIN)[:3]]
    assert len({each.shape for each in problems}) == 1 + len(accelerator.SHAPES)
    assert problems[9].shape == accelerator.MIDDLE
    assert len(problems) == len(set(problems))


def test_what_is_wrong_or_fails_is_a_row_that_says_why_and_has_no_time(accelerator, contenders, monkeypatch):
    def wrong(cell, shape):
        case = contenders.by_autodiff(cell, shape)
        return case._replace(as_ours=lambda grads: jax.tree.map(lambda leaf: leaf * jnp.float32(1.01), grads))

    def missing(cell, shape):
        raise ImportError("No module named 'something'")

    monkeypatch.setitem(contenders.ALL, "wrong", contenders.Contender(wrong))
    monkeypatch.setitem(contenders.ALL, "missing", contenders.Contender(missing))
    measured = [
        accelerator.measure(accelerator.Problem("elman", accelerator.SMALL, name), 0.0) for name in ("wrong", "missing")
    ]
    assert measured[0].keys() == measured[1].keys() == {"status"}
    assert measured[0]["status"].startswith("ArithmeticError: wrong: loss off by ")
    assert "gradient by 1.0e-02, 0.0001 allowed" in measured[0]["status"]
    assert measured[1]["status"] == "ImportError: No module named 'something'"


def test_when_the_time_is_over_what_there_is_is_kept(accelerator, monkeypatch, tmp_path, capsys):
    ended = []
    monkeypatch.setattr(accelerator.os, "_exit", ended.append)
    record = accelerator.Record(tmp_path, quick=True)
    record.end()
    assert ended == [0]
    record.add(accelerator.Problem("gru", accelerator.SMALL, "jaxrnn"), {"status": "measured", "ms": "1.5"})
    record.end()
    assert ended == [0, 0]
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png"}
    assert "The time is over" in capsys.readouterr().out


def test_wrong_use(accelerator, call, capsys):
    with pytest.raises(SystemExit):
        call(accelerator, "--minutes", 0)
    assert "--minutes must be a positive number, got 0.0" in capsys.readouterr().err
