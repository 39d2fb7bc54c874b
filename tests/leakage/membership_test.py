import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from spax import evaluation, leakage
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")


def gaussian_scores(mu, m, n, seed=0):
    """Scores of a mu-GDP mechanism's likelihood-ratio attack: N(mu, 1) and N(0, 1)."""
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1, m), rng.normal(0, 1, n)


def tied_scores(seed=0, m=60, n=45):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(0.7, 1, m), 1), np.round(rng.normal(0, 1, n), 1)


def test_the_score_is_minus_the_loss():
    logits = jax.random.normal(jax.random.key(0), (6, 4)) * 3
    y = jnp.array([0, 1, 2, 3, 0, 1])
    got = leakage.loss_threshold(lambda x: x, logits, y)
    np.testing.assert_allclose(got, jax.nn.log_softmax(logits)[jnp.arange(6), y], rtol=1e-5)
    jitted = jax.jit(lambda x, y: leakage.loss_threshold(lambda x: x, x, y))(logits, y)
    np.testing.assert_allclose(jitted, got, rtol=1e-5)
    squared = leakage.loss_threshold(lambda x: x, logits, y, loss=lambda o, y: o[:, 0] ** 2)
    np.testing.assert_allclose(squared, -(logits[:, 0] ** 2), rtol=1e-6)


def test_scores_of_sure_predictions_are_not_tied():
    # A softmax in float32 is 1 from a margin of 17 on; its logarithm by the logits is not 0.
    x = jnp.array([[20.0, 0.0], [30.0, 0.0], [40.0, 0.0]])
    scores = leakage.loss_threshold(lambda x: x, x, jnp.zeros(3, jnp.int32))
    assert (jnp.diff(scores) > 0).all()


def test_a_stochastic_model_needs_a_key():
    noisy = Stochastic(lambda x, key: x + jax.random.normal(key, x.shape))
    x, y = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="key"):
        leakage.loss_threshold(noisy, x, y)
    assert leakage.loss_threshold(noisy, x, y, key=jax.random.key(0)).shape == (2,)


@pytest.mark.parametrize("scores", [gaussian_scores(1.0, 40, 70), tied_scores()])
def test_the_curve_and_its_area_are_scikit_learns(scores):
    members, nonmembers = scores
    truth = np.repeat([1, 0], [members.size, nonmembers.size])
    fpr, tpr, threshold = metrics.roc_curve(
        truth, np.concatenate([members, nonmembers]), drop_intermediate=False
    )
    curve = leakage.roc(members, nonmembers)
    np.testing.assert_allclose(curve.fpr, fpr, rtol=1e-12)
    np.testing.assert_allclose(curve.tpr, tpr, rtol=1e-12)
    np.testing.assert_array_equal(curve.threshold, threshold)
    area = leakage.auc(members, nonmembers)
    assert area.value == pytest.approx(metrics.auc(fpr, tpr), rel=1e-12)
    pairs = members[:, None] - nonmembers[None, :]
    assert area.value == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), rel=1e-12)


def test_the_order_of_the_scores_is_all_that_counts():
    members, nonmembers = gaussian_scores(0.5, 30, 200)
    warped = [np.exp(3 * s) for s in (members, nonmembers)]
    for metric in (leakage.auc, leakage.advantage):
        assert metric(members, nonmembers) == metric(*warped)
    found, again = (leakage.tpr_at_fpr(*s, 0.05) for s in ((members, nonmembers), warped))
    assert found._replace(threshold=0) == again._replace(threshold=0)


def test_swapping_the_samples_mirrors_the_area_and_its_interval():
    members, nonmembers = gaussian_scores(1.0, 40, 40)
    area, mirrored = leakage.auc(members, nonmembers), leakage.auc(nonmembers, members)
    np.testing.assert_allclose(
        (area.value, area.low, area.high),
        (1 - mirrored.value, 1 - mirrored.high, 1 - mirrored.low),
        atol=1e-9,
    )


def test_the_areas_interval_has_the_exact_variance_where_nothing_leaks():
    # Its ends are at z standard errors; at 1/2 the variance is (m + n + 1) / (12 m n).
    m, n = 50, 80
    z = stats.norm.ppf(0.975)
    edge = 0.5 + z * np.sqrt((m + n + 1) / (12 * m * n))
    won = round(edge * m * n)
    # Scores whose area is that edge: members in front of all non-members, or behind all.
    first, rest = divmod(won, n)
    members = np.concatenate([np.full(first, n + 1.0), [rest + 0.5], np.full(m - first - 1, 0.0)])
    area = leakage.auc(members, np.arange(1.0, n + 1))
    assert area.value == pytest.approx(won / (m * n))
    assert area.low == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("mu", [0.0, 1.0, 2.0])
def test_the_areas_interval_covers(mu):
    truth = stats.norm.cdf(mu / np.sqrt(2))
    trials = 400
    missed = 0
    for seed in range(trials):
        area = leakage.auc(*gaussian_scores(mu, 30, 40, seed), confidence=0.9)
        missed += not area.low <= truth <= area.high
    # 10 % in theory; the binomial's own 99.9 % range around it
    assert stats.binom.ppf(0.0005, trials, 0.05) <= missed <= stats.binom.ppf(0.9995, trials, 0.1)


@pytest.mark.parametrize(("members", "nonmembers", "value"), [([2], [1], 1), ([1], [2], 0)])
def test_perfect_scores_do_not_make_a_certain_area(members, nonmembers, value):
    area = leakage.auc(members * 20, nonmembers * 20)
    assert area.value == value
    assert 0 < area.high - area.low < 0.2


def test_few_non_members_measure_nothing():
    members, nonmembers = gaussian_scores(1.0, 100, 999)
    found = leakage.tpr_at_fpr(members, nonmembers, 0.01)
    assert found[:7] == (None,) * 7
    assert found.reason == "not measurable, needs at least 1000 non-members (got 999)"
    enough = leakage.tpr_at_fpr(members, np.append(nonmembers, 0.0), 0.01)
    assert enough.reason == ""
    assert enough.value > 0
    assert "10000 non-members" in leakage.tpr_at_fpr(members, nonmembers, 0.001).reason


def test_the_rate_is_counted_at_a_threshold_that_keeps_to_it():
    members, nonmembers = gaussian_scores(1.0, 700, 1000)
    for fpr in (0.01, 0.0105, 0.05, 0.3, 0.999):
        found = leakage.tpr_at_fpr(members, nonmembers, fpr)
        assert found.fpr == (nonmembers >= found.threshold).mean() <= fpr
        assert found.value == (members >= found.threshold).mean()
        # No lower threshold would do.
        below = np.concatenate([members, nonmembers])
        below = below[below < found.threshold].max()
        assert (nonmembers >= below).mean() > fpr
        got = (found.low, found.high)
        assert got == evaluation.binomial_interval(round(found.value * 700), 700)
        got = (found.fpr_low, found.fpr_high)
        assert got == evaluation.binomial_interval(round(found.fpr * 1000), 1000)


def test_ties_count_against_the_attacker():
    # 4 % of the non-members share the top score with all members: nothing is found at 1 %.
    members, nonmembers = np.ones(50), np.repeat([1.0, 0.0], [40, 960])
    found = leakage.tpr_at_fpr(members, nonmembers, 0.01)
    assert (found.value, found.fpr, found.threshold) == (0, 0, np.inf)
    assert leakage.tpr_at_fpr(members, nonmembers, 0.04).value == 1


@pytest.mark.parametrize(
    ("mu", "area", "tpr"),
    [(0.25, 0.570158, 0.002254), (0.5, 0.638163, 0.004796),
     (1.0, 0.760249, 0.018298), (2.0, 0.921350, 0.137805)],
)  # fmt: skip
def test_the_gaussian_mechanism_leaks_what_its_closed_forms_say(mu, area, tpr):
    assert area == pytest.approx(stats.norm.cdf(mu / np.sqrt(2)), abs=1e-6)
    members, nonmembers = gaussian_scores(mu, 40_000, 40_000)
    got = leakage.auc(members, nonmembers, confidence=0.999)
    assert got.low <= area <= got.high
    # At the threshold of a true rate of 0.1 %, not the measured one:
    fixed = stats.norm.isf(0.001)
    found = evaluation.binomial_interval(int((members >= fixed).sum()), 40_000, 0.999)
    assert found[0] <= tpr <= found[1]
    measured = leakage.tpr_at_fpr(members, nonmembers, 0.001)
    assert measured.fpr_low <= 0.001 <= measured.fpr_high
    best = leakage.advantage(members, nonmembers)
    exact = 2 * stats.norm.cdf(mu / 2) - 1
    assert best.low <= exact <= best.high
    fixed = leakage.advantage(members, nonmembers, threshold=mu / 2, confidence=0.999)
    assert fixed.low <= exact <= fixed.high
    assert fixed.value <= best.value


@pytest.mark.parametrize("scores", [gaussian_scores(0.3, 55, 80), tied_scores(1)])
def test_the_advantage_is_the_kolmogorov_smirnov_distance(scores):
    members, nonmembers = scores
    wanted = stats.ks_2samp(members, nonmembers, alternative="less").statistic
    assert leakage.advantage(members, nonmembers).value == pytest.approx(wanted, rel=1e-12)


def test_the_advantage_of_identical_scores_is_nothing():
    scores = np.arange(10.0)
    assert leakage.advantage(scores, scores).value == 0
    assert leakage.advantage(scores, scores).low == 0
    assert leakage.advantage(scores, scores, threshold=4.0).value == 0
    memorised = leakage.advantage(np.ones(500), np.zeros(500))
    assert memorised.value == 1
    assert memorised.low > 0.8
    assert leakage.advantage([0.0], [1.0], threshold=0.5).value == -1


def test_the_advantages_interval_covers_despite_the_search():
    missed = sum(
        leakage.advantage(*gaussian_scores(0.0, 30, 30, seed), confidence=0.9).low > 0
        for seed in range(200)
    )
    assert missed <= stats.binom.ppf(0.9995, 200, 0.05)


@pytest.mark.parametrize(
    ("metric", "change", "message"),
    [
        (leakage.auc, {"members": []}, r"members must have shape \[n\], n >= 1 \(got .*\(0,\)\)"),
        (leakage.roc, {"nonmembers": [[1.0]]}, r"nonmembers must have shape"),
        (leakage.advantage, {"members": [1.0, np.nan]}, r"free of NaN \(got 1 of 2\)"),
        (leakage.tpr_at_fpr, {"fpr": 0.0}, r"fpr must be > 0 and < 1 \(got fpr=0\)"),
        (leakage.tpr_at_fpr, {"fpr": 1.0}, r"got fpr=1"),
        (leakage.tpr_at_fpr, {"fpr": 0.5, "confidence": 0.0}, r"got confidence=0"),
        (leakage.auc, {"confidence": 95.0}, r"got confidence=95"),
        (leakage.advantage, {"confidence": 1.0}, r"got confidence=1"),
        (leakage.advantage, {"threshold": np.nan}, r"got threshold=nan"),
    ],
)
def test_bad_scores_and_rates_are_refused(metric, change, message):
    given = {"members": [1.0], "nonmembers": [0.0]} | change
    with pytest.raises(ValueError, match=message):
        metric(given.pop("members"), given.pop("nonmembers"), **given)


def test_the_metrics_say_that_they_belong_outside_jit():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda s: leakage.auc(s, s).value)(jnp.ones(3))


@pytest.fixture(scope="module")
def overfit(digits):
    """Fits an MLP without restraint to 400 digits, a share of whose labels is random."""
    import optax

    from spax import nets

    x = jnp.asarray(digits.x_train[:800])
    net = nets.MLP(hidden=(128,), num_classes=10)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def fit(x, y, key):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        params = net.init(key, x[:1])
        return jax.lax.scan(step, (params, optimizer.init(params)), None, 300)[0][0]

    def scores(random_share):
        rng = np.random.default_rng(0)
        random = rng.uniform(size=800) < random_share
        y = jnp.asarray(np.where(random, rng.integers(0, 10, 800), digits.y_train[:800]), jnp.int32)
        with jax.numpy_dtype_promotion("standard"):
            params = fit(x[:400], y[:400], jax.random.key(0))
        logits_fn = jax.jit(lambda x: net.apply(params, x))
        assert evaluation.accuracy(logits_fn, x[:400], y[:400]).value == 1
        return np.split(np.asarray(leakage.loss_threshold(logits_fn, x, y)), 2)

    return scores


@pytest.mark.slow
def test_an_overfitted_network_gives_its_members_away_and_another_set_not(overfit):
    members, nonmembers = overfit(0.2)
    assert leakage.auc(members, nonmembers).low > 0.6
    assert leakage.advantage(members, nonmembers).low > 0
    assert "1000 non-members" in leakage.tpr_at_fpr(members, nonmembers, 0.01).reason
    # Two halves of what it was not trained on cannot be told apart.
    blind = leakage.auc(nonmembers[:200], nonmembers[200:])
    assert blind.low <= 0.5 <= blind.high
    assert leakage.advantage(nonmembers[:200], nonmembers[200:]).low == 0


@pytest.mark.slow
def test_memorised_random_labels_give_everyone_away(overfit):
    members, nonmembers = overfit(1.0)
    # A tenth of the non-members' random labels agree with the prediction by chance.
    assert leakage.auc(members, nonmembers).low > 0.97
    assert leakage.advantage(members, nonmembers, threshold=-0.1).low > 0.8
