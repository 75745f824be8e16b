"""rlhf.py and grpo.py: the language and its judge, every equation against a value worked out by
hand or by enumeration, known mistakes of others, and whole runs."""

import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import LANGUAGE, ROOT, environment, flags, only_folder, state_of, table
from torch import nn

import grpo
import rlhf

MODULES = {"rlhf": rlhf, "grpo": grpo}
TINY = dict(total_responses=128, sft_texts=128, sft_epochs=1, pairs=64, rm_epochs=1)
TINY |= dict(ref_responses=160, eval_responses=16, minibatch_size=16)
TINY = {"rlhf": TINY | dict(batch_size=32), "grpo": TINY | dict(num_prompts=8, group_size=4)}
BOTH = pytest.mark.parametrize("script", LANGUAGE)


def tokens_of(*texts: str) -> torch.Tensor:
    """ "food the food was good ." → (B, 1 + T): the prompt and the response, filled with stops."""
    rows = [[rlhf.WORDS.index(word) for word in text.split()] for text in texts]
    return torch.tensor([row + [rlhf.STOP] * (1 + rlhf.T - len(row)) for row in rows])


def after_the_stop(tokens: torch.Tensor) -> torch.Tensor:
    """The same responses with other words after their full stops."""
    other = torch.randint(len(rlhf.WORDS), tokens.shape)
    ended = ~nn.functional.pad(rlhf.mask_of(tokens), (1, 0), value=True)
    return torch.where(ended, other, tokens)


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
    for module in MODULES.values():
        assert module.judge(prompt, text.split()) == score


def test_people_keep_to_the_rules():
    tokens = tokens_of("food the food was very good and the bar .")[:, :-1]
    probs = rlhf.people(tokens).exp()[0]
    assert torch.allclose(probs.sum(-1), torch.ones(len(probs)))

    def p(place: int, word: str) -> float:
        return round(probs[place, rlhf.WORDS.index(word)].item(), 6)

    assert p(0, "the") == 1
    assert p(1, "food") == 0.5 + 0.5 / 8 and p(1, "bed") == 0.5 / 8
    assert p(2, "was") == 1
    assert p(3, "good") == 0.3 / 8 and p(3, "cold") == 0.3 / 8 and p(3, "not") == 0.2
    assert p(5, ".") == 0.5 and p(5, "but") == 0.1 and p(5, "good") == 0
    assert p(6, "the") == 0.25 and p(7, "food") == 0.5 + 0.5 / 8
    texts = rlhf.texts_of(rlhf.generate(rlhf.people, rlhf.prompts_of(400)))
    assert {len(text) for text in texts} >= set(range(5, 12))
    for text in texts:
        kinds = ["prompt", *(rlhf.KIND[word] for word in text)]
        assert all(kind in rlhf.RULES[before] for before, kind in zip(kinds, kinds[1:]))


def test_writing_stops_at_the_full_stop():
    """Probabilities 3/4 of "good" and 1/4 of a full stop: geometric lengths, cut at T."""

    def model(tokens):
        logits = torch.full((*tokens.shape, len(rlhf.WORDS)), -1e9)
        logits[..., rlhf.WORDS.index("good")] = math.log(3)
        logits[..., rlhf.STOP] = 0
        return logits

    tokens = rlhf.generate(model, torch.zeros(4_000, dtype=torch.long))
    mask = rlhf.mask_of(tokens)
    lengths = mask.sum(-1)
    assert (tokens[:, 1:][~mask] == rlhf.STOP).all()
    assert [len(text) for text in rlhf.texts_of(tokens)] == lengths.tolist()
    assert lengths.max() == rlhf.T
    expected = (1 - 0.75**rlhf.T) / 0.25  # 3.99
    assert abs(lengths.float().mean() - expected) < 0.25  # five standard errors
    assert abs((lengths == 1).float().mean() - 0.25) < 0.035


def test_mask():
    mask = rlhf.mask_of(RESPONSES)
    assert mask.sum(-1).tolist() == [5, 8, 20]
    assert mask[0].tolist() == [True] * 5 + [False] * 15
    assert torch.equal(rlhf.mask_of(after_the_stop(RESPONSES)), mask)


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────


def test_no_word_sees_a_later_one():
    model, tokens = rlhf.Transformer(3), torch.randint(len(rlhf.WORDS), (4, 1 + rlhf.T))
    for place in (0, 7, 20):
        other = tokens.clone()
        other[:, place] = (tokens[:, place] + 1) % len(rlhf.WORDS)
        change = (model(other) - model(tokens)).abs().amax((0, 2))
        assert (change[:place] == 0).all() and (change[place:] > 1e-6).all()
    assert torch.allclose(model(tokens[:, :5]), model(tokens)[:, :5], atol=1e-6)


@pytest.mark.parametrize("kind", ["transformer", "bag"])
def test_reward_reads_the_response_only(kind):
    """A score read at what fills the row up would change with it."""
    reward_model = rlhf.RewardModel(kind)
    with torch.no_grad():
        rewards = reward_model(RESPONSES)
        assert torch.allclose(reward_model(after_the_stop(RESPONSES)), rewards, atol=1e-6)
        prompts = RESPONSES.clone()
        prompts[:, 0] += 1
        assert ((reward_model(prompts) - rewards).abs() > 1e-4).all()
        reward_model.mean += 2.0
        assert torch.allclose(reward_model(RESPONSES), rewards - 2.0, atol=1e-6)


def test_what_the_bag_is_blind_to():
    """To order and grammar; the transformer is not."""
    pair = tokens_of("food the food was good but cold .", "food cold the but good was food .")
    twice = tokens_of("food good .", "food good good .", "food good good good .")
    for kind, blind in ("bag", True), ("transformer", False):
        torch.manual_seed(1)
        with torch.no_grad():
            reward_model = rlhf.RewardModel(kind)
            first, second = reward_model(pair)
            one, two, three = reward_model(twice)
        assert (abs(first - second) < 1e-5) == blind
        assert (abs((three - two) - (two - one)) < 1e-5) == blind  # no repetition is too much


# ── Preferences ───────────────────────────────────────────────────────────────────────────────────


def test_bradley_terry_by_hand():
    better, worse = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1.0, -1.0])
    loss = rlhf.bradley_terry_loss(lambda x: x, better[:1], worse[:1])
    assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)
    loss = rlhf.bradley_terry_loss(lambda x: x, better, worse)
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


def test_people_prefer_as_the_judge_does(monkeypatch):
    """The pairs that the reward model learns from: P(y₁ ≻ y₂) = σ(J₁ − J₂), no more and no less."""
    pairs = {}

    def fit(model, loss, samples, *args, **more):
        pairs[loss.__name__] = samples

    monkeypatch.setattr(rlhf, "fit", fit)
    rlhf.train(rlhf.Args(**TINY["rlhf"] | dict(total_responses=0, pairs=3_000)))
    better, worse = (rlhf.judged(x) for x in pairs["bradley_terry_loss"])
    assert len(better) == 3_000
    # Given the two scores, the better one comes first with probability σ(|Δ|).
    gap = (better - worse).abs()
    expected = (torch.sigmoid(gap) - 0.5)[gap > 0]
    found = (better > worse).float()[gap > 0] - 0.5
    spread = (found - expected).std() / len(found) ** 0.5
    assert abs((found - expected).mean()) < 5 * spread
    near = gap < 3  # where people are not sure, they are sometimes wrong
    assert 0.02 < ((better < worse) & near).float().mean() < 0.5


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
    for module in MODULES.values():
        monkeypatch.setattr(module, "T", TWO_WORDS)
        monkeypatch.setattr(module, "STOP", STOPS)
    tokens = torch.tensor([row for row, count in COUNTS.items() for _ in range(count)])
    scores = torch.tensor([REWARDS[tuple(row)] for row in tokens.tolist()], dtype=torch.float64)
    policy = Table(OLD)
    with torch.no_grad():
        old, ref = (rlhf.log_probs_of(Table(probs), tokens) for probs in (OLD, REF))
    return tokens, scores, policy, old, ref


def exact_objective(logits: torch.Tensor, beta: float) -> torch.Tensor:
    """E[r(y)] − β KL(π ‖ π_ref), summed over the three responses."""
    (a, stop), (a2, stop2) = logits.softmax(-1)
    (ra, rstop), (ra2, rstop2) = REF
    total = 0.0
    for p, q, reward in zip(
        (stop, a * stop2, a * a2), (rstop, ra * rstop2, ra * ra2), REWARDS.values()
    ):
        total += p * (reward - beta * (p / q).log())
    return total


def gradient(scalar: torch.Tensor, policy: Table) -> torch.Tensor:
    return torch.autograd.grad(scalar, policy.logits)[0]


def test_log_probs_by_hand(two_words):
    tokens, *_, old, ref = two_words
    expected = {(0, 1, 1): (0.5, 1.0), (0, 0, 1): (0.5, 0.25), (0, 0, 0): (0.5, 0.75)}
    for row, log_probs in zip(tokens.tolist(), old):
        assert torch.allclose(log_probs.exp(), torch.tensor(expected[tuple(row)]).double())


def test_exact_gradient_of_ppo(two_words):
    """γ = λ = 1 and V = 0: the surrogate's gradient is that of the enumerated objective."""
    tokens, scores, policy, old, ref = two_words
    mask = rlhf.mask_of(tokens)
    last = torch.tensor([[False, True] if row[1] == 0 else [True, False] for row in tokens])
    rewards = rlhf.word_rewards(scores, old, ref, last, BETA)
    zero = torch.zeros_like(rewards)
    steps = rewards, zero, zero, last, torch.zeros_like(last)
    advantages = rlhf.gae(*(x.T for x in steps), 1.0, 1.0).T * mask
    critic = nn.Linear(1, 1).double()
    arguments = policy, lambda x: critic(x.unsqueeze(-1).double()), tokens, mask, old, advantages
    args = rlhf.Args(vf_coef=0.0)
    objective, surrogate, _ = rlhf.ppo_objective(*arguments, zero, args)
    expected = gradient(exact_objective(policy.logits, BETA), policy)
    assert torch.allclose(gradient(objective, policy) * TWO_WORDS, expected, atol=1e-6)
    assert objective == surrogate


def test_word_rewards_sum_to_the_objective(two_words):
    """The mean of their sums is E[r(y)] − β KL, and nothing stands after the last word."""
    tokens, scores, policy, old, ref = two_words
    last = torch.tensor([[False, True] if row[1] == 0 else [True, False] for row in tokens])
    rewards = rlhf.word_rewards(scores, old, ref, last, BETA)
    expected = exact_objective(policy.logits, BETA)
    assert torch.isclose(rewards.sum(-1).mean(), expected, atol=1e-6)
    assert (rewards[~rlhf.mask_of(tokens)] == 0).all()
    by_hand = [0.3 - BETA * math.log(0.5 / 0.8), 0.0]
    assert torch.allclose(rewards[0], torch.tensor(by_hand).double(), atol=1e-6)


def test_exact_gradient_of_grpo(two_words):
    """The surrogate's is that of E[r]; the loss's KL is that of each word, given those before."""
    tokens, scores, policy, old, ref = two_words
    advantages = grpo.group_advantages(scores, len(scores), False)
    advantages = advantages.unsqueeze(-1) * grpo.mask_of(tokens)
    args = grpo.Args(kl_coef=BETA)
    objective, surrogate, kl_loss = grpo.grpo_objective(policy, tokens, old, ref, advantages, args)
    expected = gradient(exact_objective(policy.logits, 0.0), policy)
    assert torch.allclose(gradient(surrogate, policy) * TWO_WORDS, expected, atol=1e-6)
    objective, surrogate, kl_loss = grpo.grpo_objective(policy, tokens, old, ref, advantages, args)
    probs, ref_probs = policy.logits.softmax(-1), torch.tensor(REF).double()
    kls = (probs * (probs / ref_probs).log()).sum(-1)  # of the first and of the second word
    expected = kls[0] + 0.5 * kls[1]  # π_old writes a second word half of the time
    assert torch.isclose(kl_loss * TWO_WORDS, expected, atol=1e-6)
    assert torch.isclose(objective, surrogate - BETA * kl_loss)
    found = gradient(kl_loss, policy) * TWO_WORDS
    assert torch.allclose(found, gradient(expected, policy), atol=1e-6)


# ── KL divergences ────────────────────────────────────────────────────────────────────────────────

P = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
Q = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum()


def test_estimators_of_the_kl():
    """Both have the mean KL(π ‖ π_ref); k₃ is never negative, and 0 only where π = π_ref."""
    k1, k3 = (P / Q).log(), grpo.k3(P.log(), Q.log())
    assert torch.isclose((P * k1).sum(), kl(P, Q)) and torch.isclose((P * k3).sum(), kl(P, Q))
    assert (k1 < 0).any() and (k3[:2] > 0).all() and abs(k3[2]) < 1e-12


def test_gradients_of_the_estimators():
    """With samples of π_old = π: the ratio makes ∇k₃ that of KL(π ‖ π_ref). Without it, ∇k₃ is that
    of KL(π_ref ‖ π), and ∇k₁ is 0."""
    logits = P.log().requires_grad_()
    log_probs = logits.log_softmax(-1)
    ratio = (log_probs - P.log()).exp()

    def grad(scalar):
        return torch.autograd.grad(scalar, logits, retain_graph=True)[0]

    probs = log_probs.exp()
    right = grad((P * ratio * grpo.k3(log_probs, Q.log())).sum())
    assert torch.allclose(right, grad(kl(probs, Q)))
    reverse = grad((P * grpo.k3(log_probs, Q.log())).sum())
    assert torch.allclose(reverse, grad(kl(Q, probs))) and not torch.allclose(reverse, right)
    nothing = grad((P * (log_probs - Q.log())).sum())
    assert torch.allclose(nothing, torch.zeros(3).double(), atol=1e-12)


def test_the_penalty_lowers_the_kl(two_words):
    """Without advantages, steps up the objective lead to π_ref: the sign of the penalty."""
    tokens, _, policy, old, ref = two_words
    start = policy.logits.softmax(-1).detach()
    optimizer = torch.optim.SGD(policy.parameters(), 0.5)
    for _ in range(20):
        args = grpo.Args(kl_coef=1.0)
        objective, *_ = grpo.grpo_objective(policy, tokens, old, ref, torch.zeros_like(old), args)
        optimizer.zero_grad()
        (-objective).backward()
        optimizer.step()
    ref_probs = torch.tensor(REF).double()
    for probs, before, q in zip(policy.logits.softmax(-1), start, ref_probs):
        assert kl(probs, q) < 0.7 * kl(before, q)


@BOTH
def test_kl_that_is_logged(script):
    """It is that of whole responses, the same number that the rewards of rlhf.py hold."""
    module = MODULES[script]
    reward_model = module.RewardModel("transformer")
    models = dict(policy=module.Transformer(len(module.WORDS)), reward_model=reward_model)
    models["reference"] = module.Transformer(len(module.WORDS))
    prompts = module.prompts_of(64)
    tokens, scores, log_probs, ref_log_probs = responses = module.respond(prompts, **models)
    samples = dict(rewards=torch.randn(8, 100), judge_scores=torch.randn(8, 100).sort()[0])
    metrics = module.measure(*responses, samples, 0.4)
    mask = module.mask_of(tokens)
    last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    rewards = rlhf.word_rewards(scores, log_probs, ref_log_probs, last, 0.4)
    assert torch.isclose(metrics["kl"], (scores - rewards.sum(-1)).mean() / 0.4, atol=1e-5)
    total = 0.0  # each word, one after the other
    for row, words in zip(tokens, mask.sum(-1)):
        for t in range(int(words)):
            p, q = (
                models[x](row[None, : t + 1])[0, -1].softmax(-1) for x in ("policy", "reference")
            )
            total += (p / q).log()[row[t + 1]].item()
    assert math.isclose(metrics["kl"].item(), total / 64, abs_tol=1e-3)
    assert metrics["length"] == mask.sum() / 64
    assert metrics["reward"] == scores.mean()


# ── Groups, words and what follows the full stop ──────────────────────────────────────────────────


@pytest.mark.parametrize("group_std", [True, False])
def test_group_advantages(group_std):
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.1, 0.1, 0.1, 0.1])
    advantages = grpo.group_advantages(scores, 4, group_std)
    expected = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / (14 / 4) ** (0.5 * group_std)
    assert torch.allclose(advantages[:4], expected, rtol=1e-3)
    assert (
        advantages[4:].abs() < 1e-3
    ).all()  # no spread: no NaN, and no rounding error made large
    advantages = grpo.group_advantages(torch.randn(60), 5, group_std)
    assert torch.allclose(advantages.reshape(12, 5).sum(1), torch.zeros(12), atol=1e-5)
    assert (grpo.group_advantages(torch.randn(4), 1, group_std) == 0).all()


@BOTH
def test_every_word_has_the_same_weight(script):
    """Two responses of 3 and 9 words: no 1/|y| in the loss, and no second standardisation."""
    module = MODULES[script]
    tokens = tokens_of("food the food .", "bed the bed was very good but the room .")
    mask, policy = module.mask_of(tokens), module.Transformer(len(module.WORDS))
    old = module.log_probs_of(policy, tokens).detach()
    advantages = torch.tensor([[2.0], [3.0]]) * mask
    if script == "rlhf":
        critic, zero = module.Transformer(1), torch.zeros_like(old)
        arguments = policy, critic, tokens, mask, old, advantages, zero
        objective = module.ppo_objective(*arguments, module.Args(vf_coef=0.0))[0]
    else:
        arguments = policy, tokens, old, old, advantages
        objective = module.grpo_objective(*arguments, module.Args())[0]
    assert math.isclose(objective.item(), (3 * 2 + 9 * 3) / (2 * module.T), rel_tol=1e-5)
    log_probs = module.log_probs_of(policy, tokens)
    found = torch.autograd.grad(objective, policy.parameters())
    by_hand = (2 * log_probs[0].sum() + 3 * log_probs[1].sum()) / (2 * module.T)
    for x, y in zip(found, torch.autograd.grad(by_hand, policy.parameters())):
        assert torch.allclose(x, y, atol=1e-5)


@BOTH
def test_nothing_after_the_full_stop_counts(script):
    """Neither for losses and KL, nor for the advantages of the words before it."""
    module = MODULES[script]
    policy, reference = (module.Transformer(len(module.WORDS)) for _ in range(2))
    critic, results = module.Transformer(1), []
    for tokens in (RESPONSES, after_the_stop(RESPONSES)):
        mask = module.mask_of(tokens)
        with torch.no_grad():
            old, ref = module.log_probs_of(policy, tokens), module.log_probs_of(reference, tokens)
        old = old - 0.1 * mask  # ratios other than 1
        if script == "rlhf":
            with torch.no_grad():
                values = critic(tokens).squeeze(-1)
            last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
            rewards = module.word_rewards(torch.ones(3), old, ref, last, 0.4)
            steps = rewards, values[:, :-1], values[:, 1:], last, torch.zeros_like(last)
            advantages = module.gae(*(x.T for x in steps), 1.0, 0.95).T
            results.append([advantages[mask]])
            targets = advantages + values[:, :-1]
            arguments = policy, critic, tokens, mask, old, advantages * mask, targets
            results[-1] += module.ppo_objective(*arguments, module.Args())
        else:
            arguments = policy, tokens, old, ref, torch.ones(3, 1) * mask
            results.append(list(module.grpo_objective(*arguments, module.Args())))
        results[-1].append(module.sft_loss(policy, tokens))
        results[-1].append((old - ref).sum(-1))
    for first, second in zip(*results):
        assert torch.allclose(first, second, atol=1e-5)


# ── How far from the optimum ──────────────────────────────────────────────────────────────────────


def test_bound_of_a_table():
    """Five responses, π_ref as counts of samples: no policy is above the bound, π* is on it."""
    beta, counts = 0.4, torch.tensor([8, 4, 4, 2, 2])
    ref, rewards = counts.double() / 20, torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5]).double()
    samples = rewards.repeat_interleave(counts).repeat(3, 1)  # three prompts
    for module in MODULES.values():
        bound, sample_size = module.best_objective(samples, beta)

        def objective(policy):
            return (policy * rewards).sum() - beta * kl(policy, ref)

        best = ref * (rewards / beta).exp()
        best /= best.sum()
        assert torch.isclose(objective(best), bound)
        for policy in torch.distributions.Dirichlet(torch.ones(5).double()).sample((200,)):
            assert objective(policy) < bound
        weights = (best / counts).repeat_interleave(counts)
        assert torch.isclose(sample_size, 3 / (weights**2).sum())
        bound, sample_size = module.best_objective(samples, 1e9)  # π* = π_ref
        assert abs(bound - (ref * rewards).sum()) < 1e-6 and abs(sample_size - 60) < 1e-3
        bound, sample_size = module.best_objective(samples, 0.0)  # the best response alone
        assert abs(bound - 2.0) < 1e-4 and abs(sample_size - 6) < 1e-3


def test_share_and_win_rate():
    tokens = tokens_of("food the food was good .", "bed the room was bad .")  # 3 and -1
    zero, log_ratios = torch.zeros(2, rlhf.T), torch.zeros(2, rlhf.T)
    log_ratios[0, 0] = 0.5
    judge_scores = torch.tensor([[1.0, 3.0, 3.0, 4.0], [-2.0, -1.5, 0.0, 1.0], *[[0.0] * 4] * 6])
    rewards = torch.arange(8 * 100).reshape(8, 100) % 3 - 1.0
    samples = dict(judge_scores=judge_scores, rewards=rewards)
    judge_scores[[0, rlhf.TOPICS.index("bed")]] = judge_scores[:2].clone()
    for module in MODULES.values():
        arguments = tokens, torch.tensor([0.9, 0.7]), log_ratios, zero, samples
        metrics = module.measure(*arguments, 1.0)
        assert metrics["judge"] == 1.0
        assert metrics["win_rate"] == ((1 + 2 / 2) / 4 + 2 / 4) / 2  # a tie counts half
        assert metrics["sample_size"] >= 100
        share = (0.8 - 0.25) / metrics["bound"]
        assert torch.isclose(metrics["share"], share)


@BOTH
def test_no_share_without_enough_samples(script, capsys):
    """updates.csv has its columns for every β; the summary has the share where it can be known."""
    folder = train(script, kl_coef=100.0)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sample_size"] > 100 and "share" in summary
    train(script, kl_coef=0.0, total_responses=256, resume=folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sample_size"] < 100 and "share" not in summary and "bound" in summary
    assert len(table(folder / "updates.csv")) == 8


# ── Whole runs ────────────────────────────────────────────────────────────────────────────────────


def train(script: str, **settings):
    return MODULES[script].train(MODULES[script].Args(**TINY[script] | settings))


def rows_of(folder) -> list[dict[str, float]]:
    rows = table(folder / "updates.csv")
    for row in rows:
        del row["seconds"]
    return rows


@BOTH
def test_counts(script, monkeypatch):
    """Each epoch uses every response once; π_old is that which wrote; the rate is annealed."""
    module, used, rates, kept = MODULES[script], [], [], {}
    name = "ppo_objective" if script == "rlhf" else "grpo_objective"
    objective, init = getattr(module, name), module.Run.__init__

    def spy(policy, *parts):
        tokens, old = (parts[1], parts[3]) if script == "rlhf" else parts[:2]
        if len(used) % 8 == 0:  # the first minibatch of an update: the ratio is 1
            assert torch.allclose(module.log_probs_of(policy, tokens), old, atol=1e-4)
        used.append(tokens)
        rates.append(kept["adam"].param_groups[0]["lr"])
        return objective(policy, *parts)

    def keep(run, args, **state):
        kept.update(state)
        init(run, args, **state)

    monkeypatch.setattr(module, name, spy)
    monkeypatch.setattr(module.Run, "__init__", keep)
    folder = train(script, update_epochs=4, learning_rate=1e-3)
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == [32, 64, 96, 128]
    assert len(used) == 4 * 4 * 2 and all(len(tokens) == 16 for tokens in used)
    assert rates == [1e-3 * x for x in (1.0, 0.75, 0.5, 0.25) for _ in range(8)]
    for i in range(0, 32, 8):
        epochs = [torch.cat(used[j : j + 2]).tolist() for j in range(i, i + 8, 2)]
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
        assert epochs[0] != epochs[1]  # shuffled
        prompts = sorted(row[0] for row in epochs[0])
        assert prompts == sorted(list(range(8)) * 4)  # each topic as often as the others
    first = rows[0]
    assert abs(first["kl"]) < 1e-5 and {"judge", "win_rate", "reward", "length"} <= first.keys()
    state = state_of(folder)
    mean = state["ref_samples"]["rewards"].mean()
    assert abs(mean) < 1e-3 and state["ref_samples"]["rewards"].shape == (8, 20)
    assert (state["ref_samples"]["judge_scores"].diff() >= 0).all()
    # r is shifted by the same mean.
    reference, reward_model = (
        module.Transformer(len(module.WORDS)),
        module.RewardModel("transformer"),
    )
    reference.load_state_dict(state["reference"])
    reward_model.load_state_dict(state["reward_model"])
    with torch.no_grad():
        rewards = reward_model(module.generate(reference, module.prompts_of(1_000)))
    assert abs(rewards.mean()) < 5 * rewards.std() * (1 / 160 + 1 / 1_000) ** 0.5
    assert abs(reward_model.mean) > 6 * rewards.std() * (1 / 160 + 1 / 1_000) ** 0.5


def test_advantages_of_a_run(monkeypatch):
    """What an update of rlhf.py learns from, word for word: λ-returns of the rewards per word."""
    seen, kept, beta, lam = [], {}, 0.4, 0.9
    init, objective = rlhf.Run.__init__, rlhf.ppo_objective

    def keep(run, args, **state):
        kept.update(state)
        init(run, args, **state)

    def spy(policy, critic, *minibatch):  # before the first step of Adam
        seen.append(minibatch)
        with torch.no_grad():
            kept["values"] = critic(minibatch[0])[..., 0]
            kept["log_probs"] = rlhf.log_probs_of(policy, minibatch[0])
        return objective(policy, critic, *minibatch)

    monkeypatch.setattr(rlhf.Run, "__init__", keep)
    monkeypatch.setattr(rlhf, "ppo_objective", spy)
    settings = dict(total_responses=32, minibatch_size=32, update_epochs=1)
    train("rlhf", kl_coef=beta, gae_lambda=lam, **settings)
    ((tokens, mask, old, advantages, targets, _),) = seen
    values = kept["values"]
    with torch.no_grad():
        scores = kept["reward_model"](tokens)
        ref = rlhf.log_probs_of(kept["reference"], tokens)
    assert torch.allclose(old, kept["log_probs"], atol=1e-5)
    expected = torch.zeros_like(advantages)
    lengths = [len(text) for text in rlhf.texts_of(tokens)]
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


def test_advantages_of_groups(monkeypatch):
    """What an update of grpo.py learns from: a response gives its advantage to all of its words."""
    seen, objective = [], grpo.grpo_objective

    def spy(*parts):
        seen.append(parts)
        return objective(*parts)

    monkeypatch.setattr(grpo, "grpo_objective", spy)
    respond, kept = grpo.respond, []

    def keep(*args, **models):
        kept.append(respond(*args, **models))
        return kept[-1]

    monkeypatch.setattr(grpo, "respond", keep)
    train("grpo", total_responses=32, minibatch_size=32, update_epochs=1)
    written, scores, *_ = kept[0]
    assert (written[:, 0].reshape(8, 4) == torch.arange(8).unsqueeze(1)).all()
    ((_, tokens, _, _, advantages, _),) = seen
    by_row = {tuple(row): score.item() for row, score in zip(written.tolist(), scores)}
    for row, advantage in zip(tokens, advantages):
        group = [scores[i].item() for i in range(32) if written[i, 0] == row[0]]
        mean = sum(group) / 4
        std = (sum((x - mean) ** 2 for x in group) / 4) ** 0.5
        n = len(grpo.texts_of(row[None])[0])
        expected = torch.tensor([(by_row[tuple(row.tolist())] - mean) / std] * n + [0.0] * (20 - n))
        assert torch.allclose(advantage, expected, atol=2e-3)


@BOTH
def test_half_and_half_is_the_whole(script):
    """Stages, then half of the updates, then the rest: the same files as in one go."""
    whole, half = train(script), train(script, total_responses=0)
    assert rows_of(whole) and not (half / "updates.csv").exists()
    module = MODULES[script]
    save = module.Run.save

    def stop_half_way(run, step, now=False):
        save(run, step, now=True)
        if step == 64:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Run, "save", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            train(script, resume=half)
    with open(half / "updates.csv", "a") as file:  # what a kill leaves behind
        file.write("96,1,2,3\n96,")
    train(script, resume=half)
    assert rows_of(half) == rows_of(whole)
    first, second = (json.loads((x / "summary.json").read_text()) for x in (half, whole))
    assert first | {"seconds": 0} == second | {"seconds": 0}
    for name, saved in state_of(whole)["policy"].items():
        assert torch.equal(state_of(half)["policy"][name], saved)
    # Watching: nothing changes, and the same numbers are shown.
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    train(script, resume=half, total_responses=0, prompt="food")
    assert before == {path.name: path.read_bytes() for path in half.iterdir()}


@BOTH
def test_command_line(script, tmp_path):
    """In an empty folder, the file alone: a run with W&B, ten responses, and errors in one line."""
    (tmp_path / f"{script}.py").write_text((ROOT / f"{script}.py").read_text())

    def run(*words):
        command = [sys.executable, f"{script}.py", *words]
        variables = environment() | {"WANDB_MODE": "offline"}
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)

    done = run(*flags(TINY[script]), "--track", "--seed", "7")
    assert done.returncode == 0, done.stderr
    folder = only_folder(tmp_path)
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"updates/judge" in log.read_bytes() and b"win_rate" in log.read_bytes()
    content = json.loads((folder / "args.json").read_text())
    assert content["script"] == script and content["args"]["seed"] == 7
    assert "judge" in done.stderr  # the progress bar
    names = json.loads((folder / "summary.json").read_text()).keys()
    assert {"step", "seconds", "judge", "win_rate", "reward", "kl", "bound"} <= names
    assert done.stdout.splitlines()[-1].startswith("step 128, seconds ")

    done = run("--resume", str(folder), "--prompt", "food")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-11:]
    assert lines[0].split() == ["judge", "r", "reference", "judge", "r", "policy"]
    assert len({line.rstrip() for line in lines}) == 11

    other = "grpo" if script == "rlhf" else "rlhf"
    (tmp_path / f"{other}.py").write_text((ROOT / f"{other}.py").read_text())
    command = [sys.executable, f"{other}.py", "--resume", str(folder)]
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert wrong.stderr.splitlines()[-1].endswith(f"is a run of {script}.py")
    assert run("--prompt", "pizza").returncode == 2
    for words, message in {
        ("--resume", "nowhere"): "FileNotFoundError",
        ("--learning-rate", "nan", *flags(TINY[script])): "FloatingPointError: not finite at step",
    }.items():
        done = run(*words)
        assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(message)


@BOTH
def test_learns(script):
    """Some seconds of all three stages: what people like rises, and with it the learned reward."""
    settings = dict(sft_texts=4_000, sft_epochs=3, pairs=1_500, rm_epochs=6, ref_responses=4_000)
    settings |= dict(total_responses=2_560, eval_responses=400, minibatch_size=64)
    settings |= dict(batch_size=256) if script == "rlhf" else dict(num_prompts=32, group_size=8)
    folder = train(script, **settings)
    first, last = rows_of(folder)[0], json.loads((folder / "summary.json").read_text())
    assert last["judge"] > first["judge"] + 0.5
    assert last["reward"] > 0.6 and last["win_rate"] > 0.55 and 0.2 < last["kl"] < 8
