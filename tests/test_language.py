"""rlhf.py and grpo.py: the language and its judge, every equation against a value worked out by
hand or by enumeration, known mistakes of others, and whole runs."""

import copy
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import (
    ROOT,
    environment,
    error_line,
    flags,
    main,
    only_folder,
    state_of,
    summary_of,
    table,
)
from torch import nn

import grpo
import rlhf

TINY = dict(total_responses=128, sft_texts=128, sft_epochs=1, pairs=64, rm_epochs=1, batch_size=32)
TINY |= dict(ref_responses=20, eval_responses=2, minibatch_size=16)
TINY = {"rlhf": TINY, "grpo": TINY | dict(group_size=4)}
BOTH = pytest.mark.parametrize("module", [rlhf, grpo], ids=["rlhf", "grpo"])


def tokens_of(*texts: str) -> torch.Tensor:
    """ "food the food was good ." → (B, 1 + T): the prompt and the response, filled with stops."""
    rows = [[rlhf.WORDS.index(word) for word in text.split()] for text in texts]
    return torch.tensor([row + [rlhf.STOP] * (1 + rlhf.T - len(row)) for row in rows])


def last_words(tokens: torch.Tensor) -> torch.Tensor:
    """(B, T): true at the last word of each response."""
    mask = rlhf.response_mask(tokens)
    return mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))


RESPONSES = tokens_of(
    "food the food was good .", "bed the room was very good but cold .", "bar " + "bar " * 20
)


# ── The language and its judge ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "prompt, text, score",
    [
        ("food", "the food was good .", 3.0),
        ("food", "the bed was good .", 1.0),
        ("food", "the bed was bad .", -1.0),
        ("food", "the bed was not bad .", 0.5),
        ("food", "the bed was not very good .", -0.5),
        ("food", "the bed was very good and kind .", 2.0),
        ("food", "the bed was good and good .", 0.0),  # the second is a repetition
        ("food", "the food was good and the food was nice .", 3.0),
        ("food", "the bed was good", -1.0),  # no full stop
        ("food", "the bed good .", 0.0),  # a break of the grammar
        ("food", "good .", 0.0),
        ("food", ".", -1.0),
        # 16 words, 2 too many; as much praise as blame; "and ." breaks the grammar
        ("food", "the bed was good and bad and nice and cold and fine and rude and .", -2.0),
        ("food", "the " * 20, -1.0 * 19 - 0.5 * 6 - 2),
    ],
)
def test_judge(prompt, text, score):
    assert rlhf.judge(prompt, text.split()) == score


def test_writers_keep_to_the_rules():
    tokens = tokens_of("food the food was very good and the bar .")[:, :-1]
    probs = rlhf.writers(tokens).exp()[0]
    assert torch.allclose(probs.sum(-1), torch.ones(len(probs)))

    def p(place: int, word: str) -> float:
        return round(probs[place, rlhf.WORDS.index(word)].item(), 6)

    assert p(0, "the") == 1
    assert p(1, "food") == 0.5 + 0.5 / 8 and p(1, "bed") == 0.5 / 8
    assert p(2, "was") == 1
    assert p(3, "good") == 0.3 / 8 and p(3, "cold") == 0.3 / 8 and p(3, "not") == 0.2
    assert p(5, ".") == 0.5 and p(5, "but") == 0.1 and p(5, "good") == 0
    assert p(6, "the") == 0.25 and p(7, "food") == 0.5 + 0.5 / 8
    texts = rlhf.decode(rlhf.generate(rlhf.writers, torch.arange(400) % 8))
    assert {len(text) for text in texts} >= set(range(5, 12))
    for text in texts:
        kinds = ["prompt", *(rlhf.KIND[word] for word in text)]
        assert all(kind in rlhf.RULES[before] for before, kind in zip(kinds, kinds[1:]))


@BOTH
def test_writing_stops_at_the_full_stop(module):
    """[L10-6b] Probabilities 3/4 of "good" and 1/4 of a full stop: geometric lengths, cut at T."""

    def model(tokens):
        logits = torch.full((*tokens.shape, len(module.WORDS)), -1e9)
        logits[..., module.WORDS.index("good")] = math.log(3)
        logits[..., module.STOP] = 0
        return logits

    tokens = module.generate(model, torch.zeros(4_000, dtype=torch.long))
    mask = module.response_mask(tokens)
    lengths = mask.sum(-1)
    assert (tokens[:, 1:][~mask] == module.STOP).all()
    assert [len(text) for text in module.decode(tokens)] == lengths.tolist()
    assert lengths.max() == module.T
    expected = (1 - 0.75**module.T) / 0.25  # 3.99
    assert abs(lengths.float().mean() - expected) < 0.25  # five standard errors
    assert abs((lengths == 1).float().mean() - 0.25) < 0.035


def test_no_word_sees_a_later_one():
    """[L10-6b] The state is the text so far."""
    model, tokens = rlhf.Transformer(3), torch.randint(len(rlhf.WORDS), (4, 1 + rlhf.T))
    for place in (0, 7, 20):
        other = tokens.clone()
        other[:, place] = (tokens[:, place] + 1) % len(rlhf.WORDS)
        change = (model(other) - model(tokens)).abs().amax((0, 2))
        assert (change[:place] == 0).all() and (change[place:] > 1e-6).all()
    assert torch.allclose(model(tokens[:, :5]), model(tokens)[:, :5], atol=1e-6)


@BOTH
@torch.no_grad()
def test_reward_reads_the_response_only(module):
    """[L10-6d] A score read at what fills the row up would change with it."""
    reward_model = module.RewardModel()
    scores = reward_model(RESPONSES)
    assert scores.shape == (3,)
    ended = ~nn.functional.pad(module.response_mask(RESPONSES), (1, 0), value=True)
    others = torch.where(ended, torch.randint(len(module.WORDS), ended.shape), RESPONSES)
    assert torch.allclose(reward_model(others), scores, atol=1e-6)
    prompts = RESPONSES.clone()
    prompts[:, 0] += 1
    assert ((reward_model(prompts) - scores).abs() > 1e-4).all()
    reward_model.mean += 2.0
    assert torch.allclose(reward_model(RESPONSES), scores - 2.0, atol=1e-6)


@BOTH
def test_bradley_terry_by_hand(module):
    """[X-BT]"""
    better, worse = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1.0, -1.0])
    loss = module.bradley_terry_loss(lambda x: x, better[:1], worse[:1])
    assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)
    loss = module.bradley_terry_loss(lambda x: x, better, worse)
    assert math.isclose(loss.item(), (math.log(2) + math.log(1 + math.exp(-3))) / 2, rel_tol=1e-6)
    loss.backward()  # −(1 − σ(Δ)) / 2
    expected = torch.tensor([-0.5, -1 / (1 + math.exp(3))]) / 2
    assert torch.allclose(better.grad, expected)


def test_sft_loss_by_hand():
    """Each word of all texts has the same weight, and what follows the full stop has none."""

    def model(tokens):  # 1/2 for a full stop, the rest for the other 30 words
        logits = torch.zeros(*tokens.shape, len(rlhf.WORDS))
        logits[..., rlhf.STOP] = math.log(30)
        return logits

    # 33 words, of which two are full stops
    expected = (2 * math.log(2) + 31 * math.log(60)) / 33
    assert math.isclose(rlhf.sft_loss(model, RESPONSES).item(), expected, rel_tol=1e-6)


@BOTH
def test_people_prefer_as_the_judge_does(module, monkeypatch):
    """[L10-6c] The pairs that r learns from: P(y₁ ≻ y₂) = σ(J₁ − J₂), no more and no less."""
    data = {}

    def train_supervised(model, loss, samples, epochs, decay, args):
        with torch.no_grad():
            for x in model.parameters():
                x += 1
        data[loss.__name__] = model, decay, samples

    generate = module.generate  # which is slow with a transformer
    monkeypatch.setattr(module, "generate", lambda _, prompts: generate(module.writers, prompts))
    monkeypatch.setattr(module, "train_supervised", train_supervised)
    settings = dict(total_responses=0, pairs=3_000, rm_weight_decay=0.3)
    train(module, **settings)
    reference, no_decay, _ = data["sft_loss"]
    reward_model, decay, (chosen, rejected) = data["bradley_terry_loss"]
    assert (no_decay, decay) == (0.0, 0.3)  # [impl 4]; it starts as the reference model [impl 1]
    assert torch.equal(reward_model.net.words.weight, reference.words.weight + 1)
    assert len(chosen) == 3_000 and (chosen[:, 0] == rejected[:, 0]).all()
    better, worse = module.judge_scores(chosen), module.judge_scores(rejected)
    # Given the two scores, the better one comes first with probability σ(|Δ|).
    gap = (better - worse).abs()
    expected = (torch.sigmoid(gap) - 0.5)[gap > 0]
    found = (better > worse).float()[gap > 0] - 0.5
    spread = (found - expected).std() / len(found) ** 0.5
    assert abs((found - expected).mean()) < 5 * spread
    near = gap < 3  # where people are not sure, they are sometimes wrong
    assert 0.02 < ((better < worse) & near).float().mean() < 0.5


def test_agreement_with_people():
    """Three responses, so two neighbouring pairs, each with both choices of people."""
    stages = rlhf.Stages(3)
    stages.scores = torch.tensor([[0.5, 2.0, 2.0]])
    stages.judge_scores = torch.tensor([[1.0, 0.5, 3.0]])
    p, q = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-2.5))  # of the judge's choice
    log_1, log_2 = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    expected = {
        "rm_accuracy": (1 - p + 0.5) / 2,  # against the judge, and a tie
        "judge_accuracy": (p + q) / 2,
        "rm_loss": ((1 - p) * log_1 + p * log_2 + math.log(2)) / 2,
    }
    found = {name: x.item() for name, x in rlhf.agreement(stages).items()}
    assert found == pytest.approx(expected, abs=1e-5)


# ── The policy gradient, by enumeration ───────────────────────────────────────────────────────────


class Table(nn.Module):
    """A policy of the language of "a" and the full stop, with T = 2: logits for each last word."""

    def __init__(self, probs: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probs, dtype=torch.float64).log())

    def forward(self, tokens):
        return self.logits[torch.arange(tokens.shape[1]).expand(tokens.shape)]


# The responses ".", "a ." and "a a" as rows of prompt and words, as often as π_old writes them.
STOPS, TWO_WORDS = 1, 2
COUNTS = {(0, 1, 1): 4, (0, 0, 1): 1, (0, 0, 0): 3}
OLD = [[0.5, 0.5], [0.75, 0.25]]  # P(a), P(.) as the first and as the second word
REF = [[0.2, 0.8], [0.6, 0.4]]
REWARDS = {(0, 1, 1): 0.3, (0, 0, 1): 2.0, (0, 0, 0): -1.0}
BETA = 0.7


@pytest.fixture
def two_words(monkeypatch):
    """rlhf and grpo with that language; the rows, their rewards, π_θ and log π_old, log π_ref."""
    for module in (rlhf, grpo):
        monkeypatch.setattr(module, "T", TWO_WORDS)
        monkeypatch.setattr(module, "STOP", STOPS)
    tokens = torch.tensor([row for row, count in COUNTS.items() for _ in range(count)])
    scores = torch.tensor([REWARDS[tuple(row)] for row in tokens.tolist()], dtype=torch.float64)
    policy = Table(OLD)
    with torch.no_grad():
        old, ref = (rlhf.token_log_probs(Table(probs), tokens) for probs in (OLD, REF))
    return tokens, scores, policy, old, ref


def exact_objective(logits: torch.Tensor, beta: float) -> torch.Tensor:
    """E[r(y)] − β KL(π ‖ π_ref), summed over the three responses."""
    (a, stop), (a2, stop2) = logits.softmax(-1)
    (ra, rstop), (ra2, rstop2) = REF
    probs, ref_probs = (stop, a * stop2, a * a2), (rstop, ra * rstop2, ra * ra2)
    parts = zip(probs, ref_probs, REWARDS.values())
    return sum(p * (reward - beta * (p / q).log()) for p, q, reward in parts)


def zero_critic(tokens: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*tokens.shape, 1)


def gradient(scalar: torch.Tensor, policy: Table) -> torch.Tensor:
    return torch.autograd.grad(scalar, policy.logits)[0]


def test_exact_gradient_of_ppo(two_words):
    """[X-KL] [CS-10b] [X-GAE] [AC-08b] [AC-09b] The mean sum of the rewards is E[r(y)] − β KL. With
    γ = λ = 1 and V = 0, the surrogate's gradient is that of this sum, enumerated."""
    tokens, scores, policy, old, ref = two_words
    mask, last = rlhf.response_mask(tokens), last_words(tokens)
    exact = exact_objective(policy.logits, BETA)
    rewards = rlhf.word_rewards(scores, old, ref, last, BETA)
    assert torch.isclose(rewards.sum(-1).mean(), exact, atol=1e-6)
    assert (rewards[~mask] == 0).all()
    by_hand = [0.3 - BETA * math.log(0.5 / 0.8), 0.0]
    assert torch.allclose(rewards[0], torch.tensor(by_hand).double(), atol=1e-6)
    zero = torch.zeros_like(rewards)
    steps = rewards, zero, zero, last, torch.zeros_like(last)
    advantages = rlhf.gae(*(x.T for x in steps), 1.0, 1.0).T * mask
    arguments = policy, zero_critic, tokens, old, advantages, zero, rlhf.Args()
    objective, metrics = rlhf.ppo_objective(*arguments)
    found = gradient(objective, policy) * TWO_WORDS
    assert torch.allclose(found, gradient(exact, policy), atol=1e-6)
    assert objective == metrics["clipped_surrogate"]


def test_value_loss_by_hand(two_words):
    """[X-VF] [AC-09c] A critic of 0 everywhere; a target after the full stop has no weight. Every
    ratio is e, and clipped to 1 + ε in the surrogate of advantages of 1."""
    tokens, _, policy, old, ref = two_words
    mask = rlhf.response_mask(tokens)
    targets, ones = torch.where(mask, 3.0, 100.0).double(), mask.double()
    args = rlhf.Args(vf_coef=0.5, clip_coef=0.3)
    objective, metrics = rlhf.ppo_objective(
        policy, zero_critic, tokens, old - 1, ones, targets, args
    )
    assert math.isclose(metrics["value_loss"].item(), 9 * 12 / 16)  # 12 words at 16 places
    assert math.isclose(objective.item(), 1.3 * 12 / 16 - 0.5 * 9 * 12 / 16)
    _, metrics = grpo.grpo_objective(policy, tokens, old - 1, ref, ones, grpo.Args(clip_coef=0.3))
    assert math.isclose(metrics["clipped_surrogate"].item(), 1.3 * 12 / 16)


@pytest.mark.parametrize("kl_in_loss", [True, False])
def test_exact_gradient_of_grpo(two_words, kl_in_loss):
    """[X-GRPO] [X-K3] [AC-08b] [AC-09b] The surrogate's is that of E[r]; the loss's KL is that of
    each word, given those before. With the KL in the rewards, all of it is that of E[r] − β KL."""
    tokens, scores, policy, old, ref = two_words
    rewards = scores if kl_in_loss else scores - BETA * (old - ref).sum(-1)
    advantages = grpo.group_advantages(rewards, len(rewards), False)
    advantages = advantages.unsqueeze(-1) * grpo.response_mask(tokens)
    args = grpo.Args(kl_coef=BETA, kl_in_loss=kl_in_loss)
    objective, metrics = grpo.grpo_objective(policy, tokens, old, ref, advantages, args)
    surrogate, kl_loss = metrics["clipped_surrogate"], metrics["kl_loss"]
    assert torch.isclose(objective, surrogate - kl_in_loss * BETA * kl_loss)
    probs, ref_probs = policy.logits.softmax(-1), torch.tensor(REF).double()
    kls = (probs * (probs / ref_probs).log()).sum(-1)  # of the first and of the second word
    word_kl = kls[0] + 0.5 * kls[1]  # π_old writes a second word half of the time
    assert torch.isclose(kl_loss * TWO_WORDS, word_kl, atol=1e-6)
    expected = exact_objective(policy.logits, 0.0) - BETA * word_kl
    if not kl_in_loss:
        expected = exact_objective(policy.logits, BETA)
    found = gradient(objective, policy) * TWO_WORDS
    assert torch.allclose(found, gradient(expected, policy), atol=1e-6)


@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_group_mean_takes_its_share(two_words, group_size):
    """[X-GRPO] All groups of G responses, each with its probability: E[ĝ] = (1 − 1/G) ∇J."""
    _, _, policy, _, _ = two_words
    rows = [*COUNTS]
    groups = [*itertools.product(range(3), repeat=group_size)]
    chances = torch.tensor([[COUNTS[rows[i]] / 8 for i in group] for group in groups]).prod(-1)
    tokens = torch.tensor([rows[i] for group in groups for i in group])
    scores = torch.tensor([REWARDS[tuple(row)] for row in tokens.tolist()]).double()
    with torch.no_grad():
        old = grpo.token_log_probs(policy, tokens)
    advantages = grpo.group_advantages(scores, group_size, False) * group_size
    advantages *= chances.repeat_interleave(group_size) * len(groups) / group_size
    advantages = advantages.unsqueeze(-1) * grpo.response_mask(tokens)
    args = grpo.Args(kl_coef=0.0)
    objective, _ = grpo.grpo_objective(policy, tokens, old, old, advantages, args)
    expected = (1 - 1 / group_size) * gradient(exact_objective(policy.logits, 0.0), policy)
    assert torch.allclose(gradient(objective, policy) * TWO_WORDS, expected, atol=1e-6)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum()


def test_estimators_of_the_kl():
    """[X-K3] Both have the mean KL(π ‖ π_ref); k₃ is 0 only where π = π_ref, and never negative,
    for the smallest differences in float32 either."""
    p, q = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], dtype=torch.float64)
    k1, k3 = (p / q).log(), grpo.k3(p.log(), q.log())
    assert torch.isclose((p * k1).sum(), kl(p, q)) and torch.isclose((p * k3).sum(), kl(p, q))
    assert (k1 < 0).any() and (k3[:2] > 0).all() and abs(k3[2]) < 1e-12
    x = torch.tensor([-1e-4, 1e-4]).repeat(1_000) * (1 + torch.rand(2_000))
    k3, exact = grpo.k3(torch.zeros_like(x), x), torch.expm1(x.double()) - x.double()
    assert (k3 > 0).all() and torch.allclose(k3.double(), exact, rtol=0.01)


@torch.no_grad()
def test_what_is_measured():
    """The KL is that of whole responses, the same number that the rewards of rlhf.py hold."""
    policy, stages = rlhf.Transformer(len(rlhf.WORDS)), rlhf.Stages(100)
    stages.judge_scores = torch.randint(-4, 4, (8, 100)).float()
    responses = rlhf.rollout(policy, stages, torch.arange(64) % 8)
    tokens, scores, log_probs, ref_log_probs = responses
    metrics = rlhf.measure(*responses, stages)
    rewards = rlhf.word_rewards(scores, log_probs, ref_log_probs, last_words(tokens), 0.4)
    assert torch.isclose(metrics["kl"], (scores - rewards.sum(-1)).mean() / 0.4, atol=1e-5)
    mask = rlhf.response_mask(tokens)
    assert metrics["length"] == mask.sum() / 64 and metrics["score"] == scores.mean()
    wins = []  # over the responses of π_ref to the same prompt; a tie counts half
    for prompt, words in zip(tokens[:, 0].tolist(), rlhf.decode(tokens)):
        ours = rlhf.judge(rlhf.WORDS[prompt], words)
        theirs = stages.judge_scores[prompt].tolist()
        wins += [0.5 if ours == x else ours > x for x in theirs]
    assert math.isclose(metrics["win_rate"].item(), sum(wins) / len(wins), abs_tol=1e-6)


@pytest.mark.parametrize("group_std", [True, False])
def test_group_advantages(group_std):
    """[X-GRPO]"""
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.1, 0.1, 0.1, 0.1])
    advantages = grpo.group_advantages(scores, 4, group_std)
    expected = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / (14 / 4) ** (0.5 * group_std)
    assert torch.allclose(advantages[:4], expected, rtol=1e-3)
    # no spread: no NaN, and no rounding error made large
    assert (advantages[4:].abs() < 1e-3).all()


def test_bound_of_a_table():
    """[X-BOUND] Five responses, policies as counts of samples: no policy is above the bound, π* is
    on it, and the responses of any policy that writes them all tell the same bound."""
    beta, counts = 0.4, torch.tensor([8, 4, 4, 2, 2])
    ref, scores = counts.double() / 20, torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5]).double()
    best = ref * (scores / beta).exp()
    best /= best.sum()

    def samples(counts, values):  # (3 prompts, n)
        return values.repeat_interleave(counts).repeat(3, 1)

    def objective(policy):
        return (policy * scores).sum() - beta * kl(policy, ref)

    other = torch.tensor([1, 3, 2, 7, 7])
    for module in (rlhf, grpo):
        bound = module.best_objective(samples(counts, scores), 0.0, beta)
        assert torch.isclose(objective(best), bound)
        for policy in torch.distributions.Dirichlet(torch.ones(5).double()).sample((200,)):
            assert objective(policy) < bound
        log_ratios = samples(other, (other / 20 / ref).log())
        assert torch.isclose(module.best_objective(samples(other, scores), log_ratios, beta), bound)
        log_ratios = (best / ref).log()[:1].expand(3, 1)  # of π*, a single response is enough
        own = module.best_objective(scores[:1].expand(3, 1), log_ratios, beta)
        assert torch.isclose(own, bound)
        # β = ∞: the mean of π_ref; β = 0: the best response alone.
        far = module.best_objective(samples(counts, scores), 0.0, 1e9)
        assert abs(far - (ref * scores).sum()) < 1e-6
        assert abs(module.best_objective(samples(counts, scores), 0.0, 0.0) - 2.0) < 1e-4


@BOTH
@torch.no_grad()
def test_bound_is_the_larger_estimate(module):
    """[X-BOUND] Of the estimates from responses of π_ref and of the policy, which are too low;
    without a penalty too."""
    policy, stages = module.Transformer(len(module.WORDS)), module.Stages(10)
    for beta, (low, score) in itertools.product((0.0, 0.4), [(True, -100.0), (False, 100.0)]):
        stages.scores = torch.full((8, 10), score)
        metrics = module.evaluate(policy, stages, module.Args(eval_responses=4, kl_coef=beta))
        objective = metrics["score"] - beta * metrics["kl"]
        assert torch.isclose(metrics["share"], objective / metrics["bound"])
        assert metrics["bound"] >= objective - 1e-5
        assert (metrics["bound"] < 50) if low else abs(metrics["bound"] - 100) < 1e-3


# ── Whole runs ────────────────────────────────────────────────────────────────────────────────────


def train(module, **settings):
    return module.train(module.Args(**TINY[module.__name__] | settings))


def rows_of(folder) -> list[dict[str, float]]:
    return [row | {"seconds": 0} for row in table(folder / "updates.csv")]


def record(module, monkeypatch, **settings) -> tuple[dict, list[tuple], list[float]]:
    """A run: the parts of its state; of each minibatch what its objective was given, and the rate.
    Trap 16: a row has the means over all minibatches."""
    state, given, rates, metrics = {}, [], [], []
    name = "ppo_objective" if module is rlhf else "grpo_objective"
    objective, init = getattr(module, name), module.Run.__init__

    def keep(run, args, **parts):
        state.update(parts)
        init(run, args, **parts)

    def spy(*parts):
        given.append(copy.deepcopy(parts))  # before Adam's step
        rates.append(state["adam"].param_groups[0]["lr"])
        found = objective(*parts)
        metrics.append({name: x.item() for name, x in found[1].items()})
        return found

    monkeypatch.setattr(module.Run, "__init__", keep)
    monkeypatch.setattr(module, name, spy)
    state["folder"] = train(module, **settings)
    rows = rows_of(state["folder"])
    for i, row in enumerate(rows):
        own = metrics[i * len(metrics) // len(rows) : (i + 1) * len(metrics) // len(rows)]
        for name in own[0].keys() & row.keys():
            mean = sum(x[name] for x in own) / len(own)
            assert math.isclose(row[name], mean, rel_tol=1e-3, abs_tol=1e-6)
    return state, given, rates


@BOTH
def test_counts(module, monkeypatch):
    """[L10-6a] [L10-6e] Each epoch uses every response once; π_old, which wrote them, is π_θ at the
    first minibatch and π_ref at the first update; the rate is annealed; r has mean 0."""
    state, given, rates = record(module, monkeypatch, update_epochs=4, learning_rate=1e-3)
    rows = rows_of(state["folder"])
    assert [row["step"] for row in rows] == [32, 64, 96, 128]
    assert rates == [1e-3 * x for x in (1.0, 0.75, 0.5, 0.25) for _ in range(8)]
    used = [parts[2 if module is rlhf else 1] for parts in given]
    assert len(used) == 4 * 4 * 2 and all(len(tokens) == 16 for tokens in used)
    for i in range(0, 32, 8):
        policy, old = given[i][0], given[i][3 if module is rlhf else 2]
        assert torch.allclose(module.token_log_probs(policy, used[i]), old, atol=1e-4)
        epochs = [torch.cat(used[j : j + 2]).tolist() for j in range(i, i + 8, 2)]
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
        assert epochs[0] != epochs[1]  # shuffled
        prompts = sorted(row[0] for row in epochs[0])
        assert prompts == sorted([*range(8)] * 4)  # each topic as often as the others
    if module is rlhf:
        first, last = given[0][1].state_dict(), given[-1][1].state_dict()
        assert not any(torch.equal(first[name], last[name]) for name in first)  # the critic learns
    assert abs(rows[0]["kl"]) < 1e-5 and {"judge", "win_rate", "score", "length"} <= rows[0].keys()
    stages = state["stages"]
    assert stages.scores.shape == (8, 20) and abs(stages.scores.mean()) < 1e-3
    with torch.no_grad():  # r is shifted by the same mean
        tokens = module.generate(stages.reference, torch.arange(1_000) % 8)
        scores = stages.reward_model(tokens)
    error = scores.std() * (1 / 160 + 1 / 1_000) ** 0.5
    assert abs(scores.mean()) < 5 * error and abs(stages.reward_model.mean) > 6 * error


def test_a_group_has_one_prompt(monkeypatch):
    """[X-GRPO] The same for all of its responses, also after a resume with another group size."""
    prompts, rollout = [], grpo.rollout

    def spy(policy, stages, asked):
        if len(asked) == 30:  # not those of the stages and of the evaluation
            prompts.append(asked.unflatten(0, (-1, 10)))
        return rollout(policy, stages, asked)

    folder = train(grpo, total_responses=32)
    monkeypatch.setattr(grpo, "rollout", spy)
    train(grpo, total_responses=92, batch_size=30, group_size=10, resume=folder)
    assert len(prompts) == 2
    for groups in prompts:
        assert (groups == groups[:, :1]).all() and len(groups[:, 0].unique()) == 3


@torch.no_grad()
def scored(stages, tokens) -> tuple[torch.Tensor, torch.Tensor]:
    return stages.reward_model(tokens), rlhf.token_log_probs(stages.reference, tokens)


def test_advantages_of_a_run(monkeypatch):
    """[L10-6e] [X-GAE] [X-VF] What an update of rlhf.py learns from, word for word: λ-returns of
    the rewards per word."""
    beta, lam, settings = 0.4, 0.9, dict(total_responses=32, minibatch_size=32, update_epochs=1)
    state, given, _ = record(rlhf, monkeypatch, kl_coef=beta, gae_lambda=lam, **settings)
    ((_, critic, tokens, old, advantages, targets, _),) = given
    values, mask = critic(tokens).squeeze(-1).detach(), rlhf.response_mask(tokens)
    scores, ref = scored(state["stages"], tokens)
    expected = torch.zeros_like(advantages)
    lengths = [len(text) for text in rlhf.decode(tokens)]
    assert max(lengths) == rlhf.T > min(lengths)  # one that is cut, and one with a full stop
    for i, n in enumerate(lengths):
        rewards = [-beta * (old[i, t] - ref[i, t]) for t in range(n)]
        rewards[-1] = rewards[-1] + scores[i]
        nexts = [*values[i, 1:n], 0.0]
        deltas = [rewards[t] + nexts[t] - values[i, t] for t in range(n)]
        for t in range(n):
            expected[i, t] = sum(lam ** (k - t) * deltas[k] for k in range(t, n))
    assert torch.allclose(targets[mask], (expected + values[:, :-1])[mask], atol=1e-4)
    words = expected[mask]
    standardised = (words - words.mean()) / words.std()
    assert torch.allclose(advantages[mask], standardised, atol=1e-4)
    assert (advantages[~mask] == 0).all()


@pytest.mark.parametrize("kl_in_loss", [True, False])
def test_advantages_of_groups(monkeypatch, kl_in_loss):
    """[L10-6e] [X-GRPO] What an update of grpo.py learns from: a response gives its advantage to
    all of its words; the KL divergence of a whole response may be part of its reward."""
    # Two updates: in the first one, the KL is 0. Four responses to each prompt: one group.
    settings = dict(total_responses=64, minibatch_size=32, update_epochs=1, learning_rate=0.01)
    state, given, _ = record(grpo, monkeypatch, kl_in_loss=kl_in_loss, **settings)
    _, tokens, old, ref_log_probs, advantages, _ = given[1]
    scores, ref = scored(state["stages"], tokens)
    assert torch.allclose(ref_log_probs, ref, atol=1e-5) and (old - ref).abs().max() > 0.05
    rewards = scores - (not kl_in_loss) * 0.4 * (old - ref).sum(-1)
    for row, reward, advantage in zip(tokens, rewards, advantages):
        group = rewards[tokens[:, 0] == row[0]]
        assert len(group) == 4
        n = len(grpo.decode(row[None])[0])
        value = (reward - group.mean()).item() / (group.std(correction=0).item() + 1e-4)
        expected = torch.tensor([value] * n + [0.0] * (20 - n))
        assert torch.allclose(advantage, expected, atol=2e-3)


@BOTH
def test_a_single_word(module, monkeypatch):
    """A batch of one response of one word has no spread, and that is no NaN; a group has two."""
    generate = module.generate

    def one_word(model, prompts):
        return (
            tokens_of(*["bar ."] * len(prompts)) if len(prompts) < 3 else generate(model, prompts)
        )

    monkeypatch.setattr(module, "generate", one_word)
    settings = dict(batch_size=2, group_size=2) if module is grpo else dict(batch_size=1)
    rows = rows_of(train(module, total_responses=3, **settings))
    steps = [2, 4] if module is grpo else [1, 2, 3]
    assert [(row["step"], row["length"]) for row in rows] == [(step, 1) for step in steps]
    if module is grpo:
        with pytest.raises(Exception, match="--group-size"):
            train(module, batch_size=2, group_size=1)


@BOTH
def test_half_and_half_is_the_whole(module):
    """Stages, then half of the updates, then the rest: the same files as in one go."""
    whole, half = train(module), train(module, total_responses=0)
    assert rows_of(whole) and not (half / "updates.csv").exists()
    save = module.Run.save

    def stop_half_way(run, step, now=False):
        save(run, step, now=True)
        if step == 64:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Run, "save", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            train(module, resume=half)
    with open(half / "updates.csv", "a") as file:  # what a kill leaves behind
        file.write("96,1,2,3\n96,")
    train(module, resume=half)
    assert rows_of(half) == rows_of(whole) and summary_of(half) == summary_of(whole)
    policies = state_of(half)["policy"], state_of(whole)["policy"]
    torch.testing.assert_close(*policies, rtol=0, atol=0)
    # Watching: nothing changes, and the same numbers are shown.
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    train(module, resume=half, total_responses=0, prompt="food")
    assert before == {path.name: path.read_bytes() for path in half.iterdir()}


@BOTH
def test_command_line(module, tmp_path, capsys):
    """In an empty folder, the file alone: a run with W&B, ten responses, and errors in one line."""
    script = module.__name__
    other = "grpo" if module is rlhf else "rlhf"
    (tmp_path / f"{script}.py").write_text((ROOT / f"{script}.py").read_text())
    command = [sys.executable, f"{script}.py", *flags(TINY[script]), "--track", "--seed", "7"]
    variables = environment() | {"WANDB_MODE": "offline"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = only_folder(tmp_path)
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"updates/judge" in log.read_bytes() and b"win_rate" in log.read_bytes()
    content = json.loads((folder / "args.json").read_text())
    assert content["script"] == script and content["args"]["seed"] == 7
    assert "judge" in done.stderr  # the progress bar
    assert "right on new pairs: reward model 0." in done.stdout
    names = {"step", "seconds", "judge", "win_rate", "score", "kl", "bound", "share"}
    assert names <= summary_of(folder).keys()
    assert done.stdout.splitlines()[-1].startswith("step 128, seconds ")

    main(script, "--resume", str(folder), "--no-track", "--prompt", "food")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-20:]]
    assert [line[0] for line in lines] == ["reference"] * 10 + ["policy"] * 10
    for _, judge, score, r, number, *words in lines:
        assert (judge, r) == ("judge", "r") and float(number) < 1e3
        assert float(score) == module.judge("food", words)

    line = error_line(capsys, other, "--resume", str(folder))
    assert line.endswith(f"a run of {script}.py")
    for words, message in {
        ("--resume", "nowhere"): "UserError: cannot continue from nowhere/args.json",
        ("--learning-rate", "nan", *flags(TINY[script])): "UserError: --learning-rate",
        ("--learning-rate", "inf", *flags(TINY[script])): "FloatingPointError: not finite at step",
        ("--resume", str(folder), "--seed", "8"): "UserError: --seed cannot change",
        ("--eval-responses", "0"): "UserError: --eval-responses has to be at least 1",
    }.items():
        assert error_line(capsys, script, *words).startswith(message)


@BOTH
def test_learns(module):
    """Some seconds of all three stages: what people like rises, and with it the learned reward."""
    settings = dict(sft_texts=4_000, sft_epochs=3, pairs=1_500, rm_epochs=6, ref_responses=500)
    settings |= dict(total_responses=2_560, eval_responses=50, minibatch_size=64, batch_size=256)
    folder = train(module, **settings | (dict(group_size=8) if module is grpo else {}))
    first, last = rows_of(folder)[0], summary_of(folder)
    assert last["judge"] > first["judge"] + 0.5
    assert last["score"] > 0.6 and last["win_rate"] > 0.55 and 0.2 < last["kl"] < 8
    assert 0.6 < last["rm_accuracy"] < last["judge_accuracy"] < 0.9
