"""What is done with a direction: line search, damping, trust region, on functions of which all is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from training import MODES

from tf_natgrad.steps import LevenbergMarquardt, LineSearch, StepReport, Trial, accept, kl_radius, take


class Quadratic:
    """`1/2 w^T w` at `w - scale * d`, with a KL of its own; counts how often it is looked at."""

    def __init__(self, start, d, kl=0.0, promise=1.0, spoil=None):
        self.w = keras.Variable(start, dtype="float64")
        self.untouched = keras.Variable([7, 8], dtype="int32", trainable=False)
        self.start, self.d, self.kl_per_scale, self.promise = np.array(start), np.array(d), kl, promise
        self.spoil = spoil
        self.scale = keras.Variable(0.0, dtype="float64", trainable=False)

    @property
    def variables(self):
        return [self.w, self.untouched, self.scale]

    def move(self, scale):
        self.scale.assign(scale)
        self.untouched.assign_add([1, 1])
        self.w.assign_sub(scale * tf.constant(self.d, tf.float64))

    def loss(self):
        value = 0.5 * tf.reduce_sum(tf.square(self.w.value))
        return value if self.spoil is None else tf.where(self.scale.value > self.spoil, np.float64(np.nan), value)

    def kl(self):
        return self.kl_per_scale * tf.square(self.scale.value)

    def predicted(self, scale):
        decrease = scale * (self.start @ self.d) - 0.5 * tf.square(scale) * (self.d @ self.d)
        return self.promise * decrease


def _run(mode, function):
    with_mode = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
    report = with_mode[mode](function)()
    return StepReport(*[np.asarray(value) for value in report])


@pytest.mark.parametrize("mode", MODES)
def test_a_good_step_is_taken_whole(mode):
    problem = Quadratic([3.0, -4.0], [3.0, -4.0])
    report = _run(mode, lambda: LineSearch().run(problem, problem.move, problem.variables))
    assert report.accepted and report.scale == 1.0 and report.backtracks == 0
    assert report.actual_decrease == report.predicted_decrease == 12.5 and report.reduction_ratio == 1.0
    np.testing.assert_array_equal(problem.w, [0.0, 0.0])


@pytest.mark.parametrize("mode", MODES)
def test_a_step_too_long_is_shortened_until_it_holds(mode):
    # Beyond twice the minimiser the loss rises: 5 * 0.5^2 = 1.25 is the first scale that holds.
    problem = Quadratic([3.0], [15.0])
    report = _run(mode, lambda: LineSearch(shrink=0.5).run(problem, problem.move, problem.variables))
    assert report.accepted and report.backtracks == 2 and report.scale == 0.25
    np.testing.assert_array_equal(problem.w, [3.0 - 0.25 * 15.0])
    np.testing.assert_array_equal(problem.untouched, [8, 9])
    assert report.actual_decrease == pytest.approx(4.5 - 0.5 * 0.75**2, rel=1e-15)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["uphill", "not finite", "too far", "promises too much"])
def test_a_step_that_cannot_be_mended_is_taken_back_bit_for_bit(mode, case):
    start = np.random.default_rng(0).normal(size=5)
    options = {
        "uphill": {"d": -start},
        "not finite": {"d": start, "spoil": 0.0},
        "too far": {"d": start, "kl": 100.0},
        "promises too much": {"d": start, "promise": 1e3},
    }[case]
    problem = Quadratic(start, **options)
    search = LineSearch(max_backtracks=3, min_ratio=0.5 if case == "promises too much" else 0.0)
    report = _run(mode, lambda: search.run(problem, problem.move, problem.variables, max_kl=0.01))
    assert not report.accepted and report.scale == 0.0 and report.kl == 0.0 and report.backtracks == 3
    assert problem.w.numpy().tobytes() == start.tobytes()
    np.testing.assert_array_equal(problem.untouched, [7, 8])


@pytest.mark.parametrize("mode", MODES)
def test_the_measured_kl_is_held_to_its_limit(mode):
    problem = Quadratic([3.0], [1.0], kl=0.02)
    report = _run(mode, lambda: LineSearch().run(problem, problem.move, problem.variables, max_kl=0.01))
    assert report.accepted and report.backtracks == 2
    assert report.kl == pytest.approx(0.02 * 0.64**2) and report.kl <= 0.01


def test_without_backtracking_a_step_is_taken_or_left():
    problem = Quadratic([3.0], [15.0])
    report = LineSearch(max_backtracks=0).run(problem, problem.move, problem.variables)
    assert not report.accepted and int(report.backtracks) == 0
    np.testing.assert_array_equal(problem.w, [3.0])


def test_a_decrease_below_rounding_is_not_asked_for():
    class Flat(Quadratic):
        def loss(self):
            return 1.0 + tf.where(self.scale.value > 0, self.rise, np.float64(0.0))

    for rise, accepted in ((4 * np.finfo(float).eps, True), (1e-10, False)):
        problem = Flat([1e-12], [1e-12])
        problem.rise = np.float64(rise)
        report = LineSearch(max_backtracks=0).run(problem, problem.move, problem.variables)
        assert bool(report.accepted) is accepted


def test_a_known_loss_is_not_computed_again():
    problem = Quadratic([3.0], [1.0])
    report = LineSearch().run(problem, problem.move, problem.variables, start=tf.constant(10.0, tf.float64))
    assert float(report.actual_decrease) == 10.0 - 2.0


@pytest.mark.parametrize("mode", MODES)
def test_take_goes_the_whole_way_and_tells(mode):
    problem = Quadratic([3.0], [15.0], kl=0.5)
    report = _run(mode, lambda: take(problem, problem.move))
    assert report.accepted and report.scale == 1.0 and report.kl == 0.5
    assert report.actual_decrease == 4.5 - 72.0 and report.reduction_ratio == 1.0
    np.testing.assert_array_equal(problem.w, [-12.0])


def _report(ratio, accepted=True, backtracks=0, predicted=1.0):
    zero = tf.zeros([], tf.float64)
    return StepReport(tf.constant(accepted), zero, tf.constant(backtracks), zero + predicted, zero, zero + ratio, zero)


@pytest.mark.parametrize(
    ("report", "step", "factor"),
    [
        (_report(0.9), 4, 0.95**5),
        (_report(0.75), 4, 1.0),
        (_report(0.5), 9, 1.0),
        (_report(0.25), 9, 1.0),
        (_report(0.2), 4, 0.95**-5),
        (_report(-3.0), 4, 0.95**-5),
        (_report(np.nan), 4, 0.95**-5),
        (_report(0.9), 3, 1.0),
        (_report(0.2), 0, 1.0),
        (_report(0.9, accepted=False), 1, 0.95**-5),
        (_report(0.9, backtracks=2), 1, 0.95**-5),
        (_report(0.9, predicted=-1.0), 1, 0.95**-5),
    ],
)
def test_damping_follows_the_reduction_ratio(report, step, factor):
    damping = LevenbergMarquardt().after(tf.constant(0.1, tf.float64), tf.constant(step), report)
    assert float(damping) == pytest.approx(0.1 * factor, rel=1e-14)


def test_damping_stays_within_its_bounds():
    rule = LevenbergMarquardt(initial=1.0, decay=0.5, period=1, minimum=0.9, maximum=1.5)
    assert float(rule.adapted(tf.constant(1.0), tf.constant(1.0))) == pytest.approx(0.9)
    assert float(rule.adapted(tf.constant(1.0), tf.constant(0.0))) == pytest.approx(1.5)


def test_kl_radius():
    form = tf.constant(8.0, tf.float64)
    radius = float(kl_radius(form, 0.01))
    assert 0.5 * radius**2 * 8.0 == pytest.approx(0.01, rel=1e-14)
    assert float(kl_radius(tf.constant(0.0), 0.01)) == float("inf")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LineSearch(max_backtracks=-1), "`max_backtracks`: received -1"),
        (lambda: LineSearch(shrink=0.0), "`shrink`"),
        (lambda: LineSearch(shrink=1.0), "`shrink`: received 1.0; expected a number below 1"),
        (lambda: LineSearch(min_ratio=-0.1), "`min_ratio`"),
        (lambda: LevenbergMarquardt(initial=0.0), "`initial`"),
        (lambda: LevenbergMarquardt(decay=1.0), "`decay`"),
        (lambda: LevenbergMarquardt(period=0), "`period`"),
        (lambda: LevenbergMarquardt(low=0.8), "`low`"),
        (lambda: LevenbergMarquardt(initial=1.0, maximum=0.5), "`initial`"),
    ],
)
def test_bad_numbers_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def _parabola(scale):
    """`w^2` from `w = 4` to `4 - 10 scale`, which promises 8 a step."""
    return Trial(tf.square(4.0 - 10.0 * scale), 0.05 * scale, 8.0 * scale)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("max_kl", "backtracks", "scale"),
    [(None, 1, 0.5), (0.02, 2, 0.25), (0.001, 6, 2.0**-6)],
    ids=["none", "some", "little"],
)
def test_a_search_judges_trials_alone(mode, max_kl, backtracks, scale):
    report = _run(mode, lambda: LineSearch(shrink=0.5, max_backtracks=10).search(_parabola, tf.constant(16.0), max_kl))
    assert report.accepted and report.scale == scale and report.backtracks == backtracks
    assert report.actual_decrease == 16.0 - (4.0 - 10.0 * scale) ** 2 and report.predicted_decrease == 8.0 * scale


@pytest.mark.parametrize("mode", MODES)
def test_a_search_that_finds_nothing_rejects(mode):
    def worse(scale):
        return Trial(16.0 + scale, tf.zeros([]), 8.0 * scale)

    report = _run(mode, lambda: LineSearch(max_backtracks=2).search(worse, tf.constant(16.0)))
    assert not report.accepted and report.scale == 0.0 and report.kl == 0.0 and report.backtracks == 2


def test_a_step_that_is_to_be_taken_is_reported_on():
    report = accept(_parabola, tf.constant(16.0))
    assert report.accepted and report.scale == 1.0 and report.actual_decrease == 16.0 - 36.0
    assert report.reduction_ratio == (16.0 - 36.0) / 8.0
