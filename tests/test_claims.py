"""claims.md: a small version of each measurement shows the effect that the page states."""

import re

import claims
import pytest
from conftest import ROOT


def test_variance_of_gradients():
    """1: less variance with each weight; the batch mean takes from the gradient, even its
    sign, and GRPO's group mean exactly 1/G."""
    mdp = claims.MDP(0)
    found = claims.bias_and_variance(mdp, mdp.values(mdp.theta), claims.WEIGHTS, 4000)
    variances = [found[name, "variance"] for name in ("G", "G − V", "GAE, λ = 0.95", "δ")]
    assert variances == sorted(variances, reverse=True) and variances[0] > 4 * variances[-1]
    assert max(abs(found[name, "bias"]) for name in ("GAE, λ = 0.95", "δ")) < 0.05
    assert claims.variance_ratios()[0] == pytest.approx(27.8, abs=0.05)
    # One episode: of 0.5 in G_0 the mean of (0.5, 9 times 1.5) takes 1.4.
    assert claims.left_by_batch_mean(1) == pytest.approx((0.5 - 1.4) / 0.5)
    assert claims.left_by_group_mean(4) == pytest.approx(0.75)


def test_episodes_needed(monkeypatch):
    """1: with V, in GAE or as a baseline, a policy needs fewer episodes than with G alone."""
    monkeypatch.setitem(claims.TASKS, "CartPole-v1", (2000, 20))
    needed = claims.episodes_needed("CartPole-v1", 0)
    assert max(needed["GAE, λ = 0.95"], needed["G − V"]) < needed["G"]


def test_bootstrapping():
    """2: a bad critic biases δ more than a good one, and λ = 1 not at all."""
    bad, good = (claims.errors(fit, 0) for fit in (1, 100))
    assert bad["λ = 0.0", "bias"] > 2 * good["λ = 0.0", "bias"] > 0
    assert bad["λ = 1.0", "bias"] < 0.2 * bad["λ = 0.0", "bias"]
    for steps, decay in ("n = 1", "λ = 0.0"), ("n = 200", "λ = 1.0"):
        for kind in "bias", "variance":
            assert good[steps, kind] == pytest.approx(good[decay, kind], rel=1e-3)
    assert good["λ = 0.0", "variance"] < good["λ = 1.0", "variance"]


def test_effective_samples():
    """3: 256 samples of 64 environments are worth more than 256 of one."""
    found = claims.effective_samples(("Pendulum-v1", "staggered"), 0, [1, 64], steps=800)
    assert found[64] > 1.5 * found[1]


def test_steps(monkeypatch):
    """4: a long step along the gradient leaves the trust region, trpo.py's does not.
    5: without the clip more ratios end beyond 1 ± 0.2."""
    monkeypatch.setattr(claims, "LENGTHS", [0.1, 3.2])
    monkeypatch.setattr(claims, "EPOCHS", [10])
    monkeypatch.setattr(claims, "return_of", lambda *args: 0.0)
    real = claims.in_training
    monkeypatch.setattr(claims, "in_training", lambda *args: real(*args[:3], 4096, 4, 128))
    found = claims.along_steps("HalfCheetah-v4", 0)
    assert 0.005 < found["TRPO", "KL"] <= 0.02 < found["gradient", 3.2, "KL"]
    for length in claims.LENGTHS:
        assert found["natural gradient", length, "KL"] < found["gradient", length, "KL"]
    policy = claims.in_training(claims.ppo, "HalfCheetah-v4", 0)
    clip, free = (claims.epochs(policy, name, 0) for name in ("clip", "no clip"))
    assert clip["beyond", 10] < free["beyond", 10] and 0 < clip["KL", 10] < free["KL", 10]


def test_overestimation():
    """7: where all actions are worth 0, the Q of ddpg.py rises above that of td3.py."""
    ddpg, td3 = (claims.overestimation(name, 0, 2000)[-1] for name in ("ddpg.py", "td3.py"))
    assert ddpg > max(2 * td3, 0.1)


def test_entropy():
    """8: a larger α keeps more entropy."""
    low, high = (claims.robustness(name, 0, 1400)["H"][-1] for name in ("α = 0.02", "α = 2.0"))
    assert high > low + 0.1


def test_interval_of_a_share():
    """Wilson's interval of 12 of 20, worked out by hand, and the two ends."""
    # (0.6 + 1.96²/40 ± 1.96 √(0.6 · 0.4 / 20 + 1.96² / 1600)) / (1 + 1.96²/20)
    assert claims.wilson(12, 20) == pytest.approx((0.3866, 0.7812), abs=1e-4)
    assert claims.wilson(0, 20)[0] == pytest.approx(0) and claims.wilson(20, 20)[1] < 1.0001


def test_entropy_bonus(monkeypatch):
    """9: one step from the tempting reward, a2c.py finds the better one more often with β = 0.3
    than without a bonus, and no longer with β = 1."""
    monkeypatch.setattr(claims.Tempting, "start", 1)
    none, some, much = (
        sum(claims.finds_better(beta, seed, 10_000) for seed in seeds) / len(seeds)
        for beta, seeds in ((0.0, range(3)), (0.3, range(2)), (1.0, range(1)))
    )
    assert none < some > 0.5 > much


def test_time_limits():
    """11: where a time limit is an end, a2c.py invests less often."""
    bootstraps, ends = (
        sum(claims.invests(env_id, seed, 20_000) for seed in range(2))
        for env_id in ("Invest-v0", "InvestEnds-v0")
    )
    assert bootstraps > ends


def test_kl_estimators():
    """10: k₁ in the reward has the true gradient; in the loss it has none, and k₃ in
    the reward has the wrong sign."""
    found = claims.kl_estimators()
    assert found["k₁ in the reward"] == pytest.approx((1, 0), abs=1e-3)
    assert found["k₁ in the loss"] == pytest.approx((0, 0), abs=1e-3)
    assert found["k₃ in the reward"][0] < 0 < found["k₃ in the loss"][0]
    assert found["k₁"][0] == pytest.approx(found["k₃"][0], rel=1e-4)
    assert found["k₁"][1] > 3 * found["k₃"][1]


def test_page():
    """Every claim has its marker, its table and its figure on the page."""
    text = (ROOT / "claims.md").read_text()
    markers = re.findall(r"(?m)^<!-- (\w+) -->\n\|", text)
    assert markers == ["1", "1b", *map(str, range(2, 12))]
    for path in re.findall(r"\]\((benchmarks/\S+\.svg)\)", text):
        assert (ROOT / path).exists(), path
