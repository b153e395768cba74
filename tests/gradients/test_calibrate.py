"""The fit of limits to timings: it finds those that made them, and measures by the clock that it is given."""

import itertools
import math

import jax
import pytest

import jaxrnn
from jaxrnn.gradients import calibrate
from jaxrnn.gradients.calibrate import NOISE, Problem, Timings, cost, fit, lengths, measure, regret, time_of
from jaxrnn.layer.machine import MB, Limits
from jaxrnn.layer.segments import segment_length

USUAL = Limits(24 * MB, 8 * MB, 256)
SHAPES = [(256, 32, 8192), (1024, 2, 8192), (512, 16, 65536), (128, 64, 262144), (64, 32, 524288), (2048, 4, 32768)]


def made_of(true):
    """Returns the timings of a machine of which the limits are true: the further from the K they say the slower."""
    table = []
    for T, B, step in SHAPES:
        best = segment_length("auto", T, B, step, true)
        seconds = {K: 1 + 0.2 * abs(math.log2(K / best)) for K in lengths(T)}
        table.append(Timings(f"{T},{B}", T, B, step, seconds))
    return table


@pytest.mark.parametrize(
    "true", [USUAL, Limits(96 * MB, 2 * MB, 256), Limits(6 * MB, 4 * MB, 64), Limits(16 * MB, 16 * MB, 1024)], ids=str
)
def test_the_fit_finds_what_made_the_timings(true):
    table = made_of(true)
    found = fit(table, USUAL)
    assert regret(table, found) <= regret(table, true) + NOISE
    assert found == USUAL or regret(table, USUAL) > 0.1


def test_what_the_clock_does_not_tell_apart_changes_nothing():
    flat = [Timings("flat", T, B, step, dict.fromkeys(lengths(T), 1.0)) for T, B, step in SHAPES]
    noisy = [timings._replace(seconds={K: 1 + K % 3 * 0.004 for K in timings.seconds}) for timings in flat]
    assert fit(flat, USUAL) == fit(noisy, USUAL) == USUAL


def test_one_problem_far_off_counts_more_than_several_that_are_near():
    """Three would be 3 % faster whole, and the fourth takes twice as long whole: by the mean alone they would win."""
    near = [Timings("near", 64, 32, MB, {64: 1.0, 32: 1.03, 16: 1.03, 8: 1.03, 4: 1.03})] * 15
    far = Timings("far", 64, 32, MB + 1, {64: 1.4, 32: 1.0, 16: 1.0, 8: 1.0, 4: 1.0})
    found = fit([*near, far], USUAL)
    assert cost(far, found) == 1.0


def test_times_between_lengths_lie_on_lines():
    seconds = {4: 1.0, 16: 4.0, 64: 2.0}
    assert [time_of(seconds, K) for K in (4, 8, 16, 64)] == pytest.approx([1.0, 2.0, 4.0, 2.0])
    assert (time_of(seconds, 1), time_of(seconds, 100)) == (1.0, 2.0)


@pytest.mark.parametrize("steps", [1, 3, 4, 64, 100, 101, 2000])
def test_the_lengths_tried_reach_from_the_sequence_down(steps):
    found = lengths(steps)
    assert found[0] == steps
    assert all(a > b for a, b in itertools.pairwise(found))
    assert all(a / b <= 4 for a, b in itertools.pairwise(found))
    assert found[-1] < 8 or steps < 8


def test_programs_are_timed_in_turns_by_the_clock():
    """A call of one takes two seconds, of the other three, and on a disturbed machine every other call takes ten."""
    now, calls = 0.0, []

    def program(K, seconds):
        def call():
            nonlocal now
            calls.append(K)
            now += 10 if disturbed and len(calls) % 2 else seconds

        return call

    programs = {8: program(8, 2), 4: program(4, 3)}
    for disturbed, usual in ((False, 1.0), (True, 4.0)):
        calls.clear()
        found, longer = calibrate.in_turns(programs, (), now + 1000, lambda: now)
        assert found == {8: 2, 4: 3}
        assert calls[:6] == [8, 8, 8, 4, 4, 4]
        assert longer == pytest.approx(usual, rel=0.5)
        assert 1000 <= now - (1000 if disturbed else 0) < 1100


def test_a_problem_is_measured_for_every_length():
    problem = Problem(jaxrnn.Elman, 9, 2, 3, 4, 5)
    timings = measure(problem, 0.0)
    assert (timings.problem, timings.steps, timings.rows) == ("Elman 9,2,3,4,5", 9, 2)
    assert set(timings.seconds) == set(lengths(9))
    assert all(seconds > 0 for seconds in timings.seconds.values())


def test_the_problems_measured_reach_from_what_fits_in_any_cache_to_what_fits_in_none():
    sizes = []
    for cell, T, B, D, H, V in calibrate.PROBLEMS:
        net = jaxrnn.Network((cell(D, H),), jaxrnn.Readout(H, V), jaxrnn.softmax_cross_entropy)
        sizes.append(T * calibrate.Sizes(net, jax.ShapeDtypeStruct((T, B, D), "float32"), "float32", T).widest / MB)
    assert min(sizes) < 4
    assert max(sizes) > 64
    assert all(b / a < 3 for a, b in itertools.pairwise(sorted(sizes)))
