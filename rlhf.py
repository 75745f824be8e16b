"""Reinforcement learning from human feedback (RLHF); Ouyang et al. 2022, Ziegler et al. 2019.

Changed from ppo.py: the policy is a small language model that writes reviews, an action is a word,
and the reward of a response comes from a model that was learned from preferences; a penalty keeps
the policy near the language model that it starts from. The language and its judge stand below.

Idea
    People cannot write down what a good text is, but they can say which of two is better. A reward
    model learns to predict their choice, and PPO increases its reward. But the reward model knows
    only texts like those that were compared: elsewhere it can give high rewards to texts that
    nobody likes. So β times the KL divergence from the reference model, which wrote those texts, is
    subtracted. Here a known function stands for the people, so over-optimisation can be measured.

Equations, in the order of the code
    [X-BT]     L_RM = −E[log σ(r(y_w) − r(y_l))]   from P(y₁ ≻ y₂) = σ(r(y₁) − r(y₂))
    [X-KL]     r_t = −β (log π_old(a_t|s_t) − log π_ref(a_t|s_t)), plus r(y) at the last word
    [CS-10b]   δ_t = r_t + γ V(s_{t+1}) − V(s_t)   with V(s_{t+1}) = 0 if s_{t+1} is terminal
    [X-GAE]    Â_t = Σ_l (γλ)^l δ_{t+l}
    [AC-08b]   r_t(θ) = π_θ(a_t|s_t) / π_old(a_t|s_t)   the probability ratio, not the reward
    [AC-09b]   L_CLIP = E_t[min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)]
    [X-VF]     L_VF = (V_w(s_t) − V_t^target)²   with V_t^target = Â_t + V(s_t)
    [AC-09c]   L = L_CLIP − c₁ L_VF   to be maximised over θ and w
    [X-BOUND]  E[r(y)] − β KL(π ‖ π_ref) ≤ β log E_ref[exp(r(y)/β)]   for every policy π

Algorithm [L10-6e]
    1. supervised fine-tuning: the reference model π_ref learns to write as people do
    2. reward model: r learns from pairs of responses of π_ref which one people prefer [L10-6c];
           it gives one number for a response [L10-6d]
    3. the policy [L10-6a] starts as π_θ = π_ref; repeat:
    4.     π_old = π_θ writes B responses; the state is the prompt and the words so far,
           the action the next word [L10-6b]
    5.     rewards, advantages Â by GAE with γ = 1, and value targets for each word
    6.     K times: shuffle the responses into minibatches; one Adam step up L_CLIP − c₁ L_VF each
A full stop ends a response: what is stored after it has no reward, no advantage and no loss.

Not in the text [impl]
    r starts as π_ref with a new last layer; weight decay               Ziegler 2019, 2.1
    r is the sum of what each word adds to it                           Christiano 2017, eq. 1
    r has mean 0 over responses of π_ref                                Ziegler 2019 (std 1, too)
    advantages standardised over all words of the batch                 (OpenAI: of a minibatch)
    Adam with an annealed learning rate and a clipped norm of the gradient

Run: python rlhf.py
    3 minutes on one core; the judge's score rises from 0.8 to 3.2 ± 0.2 (5 seeds)
"""

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
Topic = Literal["food", "room", "bed", "staff", "view", "pool", "bar", "bath"]


@dataclass
class Args:
    prompt: Topic | None = None  # at the end, print ten responses of π_ref and of π_θ to it
    total_responses: int = 25_600  # responses written for PPO; 0 with --resume only evaluates
    seed: int = 1  # seed of the networks, the texts and the preferences
    # Stages 1 and 2, which a resumed run does not repeat
    sft_texts: int = 20_000  # texts of people for supervised fine-tuning
    sft_epochs: int = 4  # epochs over these texts
    pairs: int = 3_000  # pairs of responses that people compare
    rm_epochs: int = 10  # epochs over the pairs
    ref_responses: int = 50_000  # of π_ref, to estimate the bound, the win rate and the mean of r
    reward_model: Literal["transformer", "bag"] = "transformer"  # bag: ignores the words' order
    # Algorithm
    kl_coef: float = 0.4  # β, weight of the KL divergence from the reference model [X-KL]
    learning_rate: float = 1e-3  # initial learning rate of Adam
    batch_size: int = 256  # B, responses per update
    minibatch_size: int = 64  # responses per step of Adam
    update_epochs: int = 4  # K, epochs over each batch of responses
    gae_lambda: float = 0.95  # λ, decay of the weight of later TD errors [X-GAE]
    clip_coef: float = 0.2  # ε, the ratio is clipped to 1 ± ε [AC-09b]
    vf_coef: float = 0.1  # c₁, weight of the value loss, which has no factor ½ here
    max_grad_norm: float = 1.0  # clip the norm of the joint gradient of θ and w to this
    # Run
    num_threads: int = 1  # PyTorch's CPU threads
    track: bool = False  # also log to Weights & Biases, set up by WANDB_PROJECT, WANDB_MODE, ...
    eval_responses: int = 2_000  # responses of the evaluation at the end
    save_every: float = 60.0  # seconds between checkpoints, saved at ends of episodes or rollouts
    resume: Path | None = None  # continue the run in this folder; flags given override its own


# ── Language ──────────────────────────────────────────────────────────────────────────────────────
TOPICS = get_args(Topic)
PRAISE = "good nice fine warm kind quiet clean great".split()
BLAME = "bad cold rude loud dirty poor slow dull".split()
WORDS = [*TOPICS, *PRAISE, *BLAME, *"the was very not and but .".split()]  # W; a token is an index
T, STOP, THE = 20, WORDS.index("."), WORDS.index("the")  # T: words in a response at most
KIND = {word: word for word in WORDS} | dict.fromkeys(TOPICS, "topic")
KIND |= dict.fromkeys(PRAISE, "praise") | dict.fromkeys(BLAME, "blame")
RULES = {  # the kinds of words that may follow a word of each kind, with their weights
    "prompt": {"the": 1},
    "the": {"topic": 1},  # half of the time the prompt, else any topic
    "topic": {"was": 1},
    "was": {"praise": 3, "blame": 3, "very": 2, "not": 2},
    "very": {"praise": 1, "blame": 1},
    "not": {"praise": 2, "blame": 2, "very": 1},
    "praise": {".": 5, "and": 4, "but": 1},
    "blame": {".": 5, "and": 4, "but": 1},
    "and": {"praise": 2, "blame": 2, "very": 1, "not": 1, "the": 2},
    "but": {"praise": 1, "blame": 1, "very": 1, "not": 1, "the": 2},
    ".": {".": 1},
}
KINDS = [*KIND.values()]
WEIGHTS = [[RULES[x].get(y, 0) / KINDS.count(y) for y in KINDS] for x in [*KINDS, "prompt"]]
FOLLOWS = F.normalize(torch.tensor(WEIGHTS), p=1)  # (W + 1, W), the probabilities of the next word


def judge(prompt: str, response: list[str]) -> float:
    """How much people like a response; it decides preferences and evaluates, and is no reward."""
    score, negated, seen = 0.0, False, set()
    for before, word in zip(["prompt", *(KIND[word] for word in response)], response):
        value = 2.0 if word == prompt else float(word in PRAISE) - float(word in BLAME)
        if negated and word != prompt:
            value *= -0.5  # "not good" is half as bad as "bad"
        if word in seen and KIND[word] != word:
            value = -1.0  # a repetition
        score += value - float(KIND[word] not in RULES[before])  # a break of the grammar costs 1
        negated = word == "not" or negated and word == "very"
        seen.add(word)
    return score - 0.5 * max(len(response) - 14, 0) - 2.0 * (response[-1] != ".")


def people(tokens: Tensor) -> Tensor:
    """Writers who follow RULES: tokens (B, L) → log-probabilities (B, L, W) of the next word."""
    before = F.pad(tokens[:, 1:], (1, 0), value=len(WORDS))  # FOLLOWS[-1] follows a prompt
    probs = FOLLOWS[before]  # (B, L, W)
    prompts = F.one_hot(tokens[:, :1], len(WORDS))  # (B, 1, W)
    return torch.where((before == THE).unsqueeze(-1), (probs + prompts) / 2, probs).log()


@torch.no_grad()
def generate(model, prompts: Tensor) -> Tensor:
    """A response to each prompt, word by word: (B,) → tokens (B, 1 + T), prompts first."""
    tokens = torch.full((len(prompts), 1 + T), STOP)
    tokens[:, 0] = prompts
    rows = torch.arange(len(prompts))  # the responses that have not ended
    for t in range(T):
        probs = model(tokens[rows, : t + 1])[:, -1].softmax(-1)
        tokens[rows, t + 1] = torch.multinomial(probs, 1).squeeze(-1)  # the action [L10-6b]
        rows = rows[tokens[rows, t + 1] != STOP]
    return tokens


def mask_of(tokens: Tensor) -> Tensor:
    """tokens (B, 1 + T) → (B, T): true for the words up to and with the full stop."""
    stops = (tokens[:, 1:] == STOP).long()
    return stops.cumsum(-1) == stops


def texts_of(tokens: Tensor) -> list[list[str]]:
    """tokens (B, 1 + T) → the words of each response."""
    lengths = mask_of(tokens).sum(-1).tolist()
    return [[WORDS[i] for i in row[1 : 1 + n]] for row, n in zip(tokens.tolist(), lengths)]


def judged(tokens: Tensor) -> Tensor:
    """tokens (B, 1 + T) → the judge's scores (B,)."""
    pairs = zip(tokens[:, 0].tolist(), texts_of(tokens))
    return torch.tensor([judge(WORDS[prompt], response) for prompt, response in pairs])


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────
class Transformer(nn.Module):
    """tokens (B, L) → (B, L, outputs); the outputs at t depend on the tokens up to t only."""

    def __init__(self, outputs: int, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), width)
        self.positions = nn.Embedding(1 + T, width)
        sizes = dict(d_model=width, nhead=heads, dim_feedforward=4 * width, dropout=0.0)
        options = dict(activation="gelu", batch_first=True, norm_first=True)
        layer = nn.TransformerEncoderLayer
        self.layers = nn.ModuleList(layer(**sizes, **options) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]]  # (B, L, width)
        for layer in self.layers:
            x = layer(x, causal, is_causal=True)
        return self.head(self.norm(x))


class RewardModel(nn.Module):
    """r(y): tokens (B, 1 + T) → one number for each response (B,).

    [impl] The sum of what each word adds. The transformer sees the prompt and all words before it.
    The bag sees the prompt and that one word, so it ignores order, grammar and repetition.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = Transformer(1)
        self.register_buffer("bag", torch.tensor(kind == "bag"))
        self.register_buffer("mean", torch.zeros(()))  # over responses of the reference model

    def forward(self, tokens: Tensor) -> Tensor:
        if self.bag:  # T texts of two tokens, the prompt and a word
            pairs = torch.stack((tokens[:, :1].expand(-1, T), tokens[:, 1:]), -1)  # (B, T, 2)
            parts = self.net(pairs.flatten(0, 1))[:, 1]  # (B · T, 1)
        else:
            parts = self.net(tokens)[:, 1:]  # (B, T, 1)
        return (parts.reshape(-1, T) * mask_of(tokens)).sum(-1) - self.mean  # [L10-6d]


# ── Equations ─────────────────────────────────────────────────────────────────────────────────────
def log_probs_of(policy, tokens) -> Tensor:
    """log π(a_t|s_t) of every word, and 0 after the last: tokens (B, 1 + T) → (B, T)."""
    log_probs = policy(tokens[:, :-1]).log_softmax(-1)  # (B, T, W)
    return log_probs.gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1) * mask_of(tokens)


def sft_loss(model, texts) -> Tensor:
    """−E[log π(a_t|s_t)], the cross-entropy of the words of texts (B, 1 + T)."""
    return -log_probs_of(model, texts).sum() / mask_of(texts).sum()


def bradley_terry_loss(reward_model, chosen, rejected) -> Tensor:
    """L_RM = −E[log σ(r(y_w) − r(y_l))]  [X-BT]; chosen y_w, rejected y_l (B, 1 + T) → scalar."""
    return -F.logsigmoid(reward_model(chosen) - reward_model(rejected)).mean()  # [X-BT]


def word_rewards(scores, log_probs, ref_log_probs, last, kl_coef) -> Tensor:
    """r_t = −β (log π_old(a_t|s_t) − log π_ref(a_t|s_t)), plus r(y) at the last word  [X-KL]

    scores r(y) (B,), the others (B, T), `last` true for the last words → (B, T).
    """
    rewards = -kl_coef * (log_probs - ref_log_probs)  # [X-KL]
    return rewards + scores.unsqueeze(-1) * last


def gae(rewards, values, next_values, terminations, truncations, gamma, gae_lambda) -> Tensor:
    """Â_t = Σ_l (γλ)^l δ_{t+l}  [X-GAE]

    All (T, N) → (T, N), by Â_t = δ_t + γλ Â_{t+1}. The recursion starts from 0 at the end of the
    rollout, and restarts at the end of every episode, terminated or truncated.
    """
    assert rewards.shape == values.shape == next_values.shape == terminations.shape
    # V(s') = 0 only if terminated; a time limit still bootstraps.
    td_errors = rewards + gamma * ~terminations * next_values - values  # δ [CS-10b]
    traces = gamma * gae_lambda * ~(terminations | truncations)
    td_errors, traces = td_errors.numpy(force=True), traces.numpy(force=True)  # faster in NumPy
    advantages, advantage = np.empty_like(td_errors), 0.0
    for t in reversed(range(len(td_errors))):
        advantages[t] = advantage = td_errors[t] + traces[t] * advantage  # [X-GAE]
    return torch.as_tensor(advantages, device=rewards.device)


def clipped_surrogate(log_probs, old_log_probs, advantages, clip_coef) -> Tensor:
    """L_CLIP = E_t[min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)]  [AC-09b]; all (B,) → scalar."""
    assert log_probs.shape == old_log_probs.shape == advantages.shape
    ratio = (log_probs - old_log_probs).exp()  # [AC-08b]
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return torch.minimum(ratio * advantages, clipped_ratio * advantages).mean()  # [AC-09b]


def ppo_objective(policy, critic, tokens, mask, old_log_probs, advantages, targets, args):
    """L = L_CLIP − c₁ L_VF  [AC-09c]; all (B, ...) → the scalars L, L_CLIP, L_VF.

    [impl] The means are over all B · T places, so that every word has the same weight.
    """
    log_probs = log_probs_of(policy, tokens)  # (B, T)
    surrogate = clipped_surrogate(log_probs, old_log_probs, advantages, args.clip_coef)
    value_errors = (critic(tokens[:, :-1]).squeeze(-1) - targets) * mask
    value_loss = (value_errors**2).mean()  # [X-VF]
    return surrogate - args.vf_coef * value_loss, surrogate, value_loss  # [AC-09c]


def best_objective(scores, kl_coef) -> tuple[Tensor, Tensor]:
    """E[r(y)] − β KL(π ‖ π_ref) ≤ β log E_ref[exp(r(y)/β)]  [X-BOUND], averaged over the prompts.

    scores (P prompts, n): r(y) of responses of π_ref. Returns the bound, too low where the best
    responses are too rare to be among these, and its effective sample size P² / Σw², with weights
    w ∝ exp(r/β) that sum to 1 for each prompt.
    """
    kl_coef = max(kl_coef, 1e-6)  # for β = 0 the largest reward
    log_weights = scores / kl_coef  # (prompts, n)
    bound = kl_coef * (log_weights.logsumexp(-1) - math.log(scores.shape[1])).mean()  # [X-BOUND]
    return bound, len(scores) ** 2 / (log_weights.softmax(-1) ** 2).sum()


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────
def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    reference, policy, critic = Transformer(len(WORDS)), Transformer(len(WORDS)), Transformer(1)
    reward_model = RewardModel(args.reward_model)
    # r(y) and the judge's scores of responses of π_ref; parameters only to be in the checkpoint.
    zeros = torch.zeros(2, len(TOPICS), args.ref_responses // len(TOPICS))
    ref_samples = nn.ParameterDict(zip(("rewards", "judge_scores"), zeros)).requires_grad_(False)
    parameters = [*policy.parameters(), *critic.parameters()]
    adam = torch.optim.Adam(parameters, fused=True)

    models = dict(policy=policy, reference=reference, reward_model=reward_model)
    run = Run(args, **models, ref_samples=ref_samples, critic=critic, adam=adam)
    step = run.step
    if not ref_samples["judge_scores"].any():  # else: the checkpoint has all of this
        # 1. Supervised fine-tuning: π_ref learns to write as people do.
        texts = generate(people, prompts_of(args.sft_texts))  # (n, 1 + T)
        fit(reference, sft_loss, [texts], args.sft_epochs)

        # 2. Reward model: r learns from pairs of responses of π_ref which one people prefer.
        head = reward_model.net.head.state_dict(prefix="head.")
        reward_model.net.load_state_dict(reference.state_dict() | head)
        first, second = (generate(reference, prompts_of(args.pairs)) for _ in range(2))
        prefer_first = torch.rand(args.pairs) < torch.sigmoid(judged(first) - judged(second))
        prefer_first = prefer_first.unsqueeze(-1)  # (n, 1)
        pairs = torch.where(prefer_first, first, second), torch.where(prefer_first, second, first)
        fit(reward_model, bradley_terry_loss, pairs, args.rm_epochs, weight_decay=1.0)  # [L10-6c]
        collect(ref_samples, reference, reward_model)

        # 3. The policy starts as π_θ = π_ref.
        policy.load_state_dict(reference.state_dict())  # a language model [L10-6a]
        run.save(step, now=True)
    while step < args.total_responses:
        adam.param_groups[0]["lr"] = args.learning_rate * (1 - step / args.total_responses)

        # 4. π_old = π_θ writes B responses.
        responses = respond(prompts_of(args.batch_size, step), **models)
        tokens, scores, old_log_probs, ref_log_probs = responses
        mask = mask_of(tokens)  # (B, T), true for the words of the responses
        step += len(tokens)

        # 5. Rewards, advantages Â by GAE with γ = 1, and value targets for each word.
        # The target is a constant: no gradient flows through it.
        with torch.no_grad():
            values = critic(tokens).squeeze(-1)  # (B, 1 + T)
        last = mask & ~F.pad(mask[:, 1:], (0, 1))  # also the T-th word, with or without a full stop
        rewards = word_rewards(scores, old_log_probs, ref_log_probs, last, args.kl_coef)  # (B, T)
        episodes = rewards, values[:, :-1], values[:, 1:], last, torch.zeros_like(last)
        advantages = gae(*(x.T for x in episodes), 1.0, args.gae_lambda).T  # (B, T)
        targets = advantages + values[:, :-1]
        valid = advantages[mask]
        advantages = (advantages - valid.mean()) / (valid.std() + 1e-8) * mask

        # 6. K times: shuffle the responses into minibatches; one Adam step up L for each.
        losses, batch = [], (tokens, mask, old_log_probs, advantages, targets)
        for _ in range(args.update_epochs):
            for rows in torch.randperm(len(tokens)).split(args.minibatch_size):
                minibatch = (x[rows] for x in batch)
                objective, *terms = ppo_objective(policy, critic, *minibatch, args)
                adam.zero_grad()
                # Ascent on the objective = descent on its negative.
                (-objective).backward()
                norm = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
                adam.step()
                losses.append(torch.stack((*terms, norm)).detach())

        names = "clipped_surrogate", "value_loss", "grad_norm"
        metrics = dict(zip(names, torch.stack(losses).mean(0)))  # means over all minibatches
        metrics |= measure(*responses, ref_samples, args.kl_coef)
        run.log("updates", step, **metrics)
        run.save(step, now=step >= args.total_responses)

    responses = respond(prompts_of(args.eval_responses), **models)
    evaluation = measure(*responses, ref_samples, args.kl_coef)
    if evaluation["sample_size"] < 100:
        del evaluation["share"]  # too few responses to know the bound
    run.finish(step, evaluation)
    if args.prompt:
        show(args.prompt, **models)
    return run.folder


def fit(model, loss, data, epochs, weight_decay=0.0) -> None:
    """AdamW on loss(model, *minibatch of 64), with a rate annealed from 2e-3 to 0 [impl]."""
    adam = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay, fused=True)
    minibatches = [x for _ in range(epochs) for x in torch.randperm(len(data[0])).split(64)]
    for i, rows in enumerate(tqdm(minibatches, loss.__name__, leave=False, disable=None)):
        adam.param_groups[0]["lr"] = 2e-3 * (1 - i / len(minibatches))
        adam.zero_grad()
        loss(model, *(x[rows] for x in data)).backward()
        adam.step()


@torch.no_grad()
def respond(prompts, policy, reference, reward_model) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """prompts (B,) → tokens (B, 1 + T), r(y) (B,), log π and log π_ref of each word (B, T)."""
    tokens = generate(policy, prompts)
    scores, log_probs = reward_model(tokens), log_probs_of(policy, tokens)
    return tokens, scores, log_probs, log_probs_of(reference, tokens)


def measure(tokens, scores, log_probs, ref_log_probs, ref_samples, kl_coef) -> dict[str, Tensor]:
    """The metrics of the responses that `respond` returns."""
    kl = (log_probs - ref_log_probs).sum(-1).mean()  # KL(π ‖ π_ref) of whole responses
    # The share of pairs in which the judge prefers ours to one of π_ref; a tie counts half.
    ours, theirs = judged(tokens), ref_samples["judge_scores"][tokens[:, 0]]  # (B,), (B, n)
    below, up_to = (torch.searchsorted(theirs, ours.unsqueeze(-1), right=x) for x in (False, True))
    win_rate = (below + up_to).float().mean() / (2 * theirs.shape[1])
    metrics = dict(judge=ours.mean(), win_rate=win_rate, reward=scores.mean())
    metrics |= dict(kl=kl, length=mask_of(tokens).sum(-1).float().mean())
    bound, sample_size = best_objective(ref_samples["rewards"], kl_coef)
    share = (scores.mean() - kl_coef * kl) / bound
    return metrics | dict(bound=bound, sample_size=sample_size, share=share)


def show(prompt: str, policy, reference, reward_model) -> None:
    """Prints ten responses of the reference and of the policy, with the judge's score and r."""
    prompts, columns = torch.full((10,), WORDS.index(prompt)), []
    for model in (reference, policy):
        tokens = generate(model, prompts)
        rows = zip(judged(tokens), reward_model(tokens), texts_of(tokens))
        columns.append([f"{x:5.1f} {r:5.1f}  {' '.join(text)}" for x, r, text in rows])
    columns = [["judge     r  reference", *columns[0]], ["judge     r  policy", *columns[1]]]
    for left, right in zip(*columns):
        print(f"{left:{max(map(len, columns[0]))}}   {right}")


@torch.no_grad()
def collect(ref_samples, reference, reward_model) -> None:
    """r(y) and the judge's scores of responses of π_ref; shifts r to a mean of 0 [impl]."""
    batches = prompts_of(ref_samples["rewards"].numel()).split(1_000)
    batches = tqdm(batches, "responses of the reference", leave=False, disable=None)
    tokens = torch.cat([generate(reference, prompts) for prompts in batches])  # (n, 1 + T)
    rewards = torch.cat([reward_model(x) for x in tokens.split(1_000)])
    reward_model.mean += rewards.mean()
    ref_samples["rewards"].copy_((rewards - rewards.mean()).reshape(-1, len(TOPICS)).T)
    ref_samples["judge_scores"].copy_(judged(tokens).reshape(-1, len(TOPICS)).T.sort()[0])


def prompts_of(n: int, first: int = 0) -> Tensor:
    """(n,): the topics in turn."""
    return (first + torch.arange(n)) % len(TOPICS)


# ── Plumbing: the same text in rlhf.py and grpo.py ────────────────────────────────────────────────
class Run:
    """A run's folder: args.json, updates.csv, checkpoint.pt, summary.json.

    A kill costs `save_every` seconds and the present update; in the first two stages, these start
    again. checkpoint.pt is replaced as a whole, and --resume cuts the CSV file back to its size
    then. It holds `state` and PyTorch's random generator, so a resumed run is the same run.
    """

    def __init__(self, args: Args, **state) -> None:
        self.args, self.state, self.wandb, self.step = args, state, None, 0
        self.start = self.saved_at = time.time()
        script = Path(__file__).stem
        self.folder = args.resume or Path("runs", f"{script}__{args.seed}__{time.time_ns()}")
        if args.resume:
            checkpoint = torch.load(self.folder / "checkpoint.pt", "cpu", weights_only=True)
            for part, saved in checkpoint["state"].items():
                state[part].load_state_dict(saved)
            torch.set_rng_state(checkpoint["random"])
            self.step, self.start = checkpoint["step"], time.time() - checkpoint["seconds"]
            if self.step < args.total_responses:  # else: evaluation only
                open(self.folder / "updates.csv", "a").truncate(checkpoint["csv_size"])
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.save(0, now=True)
        if self.step < args.total_responses or not args.resume:  # else: evaluation only
            content = {"script": script, "args": asdict(args) | {"resume": None}}
            content["versions"] = {x.__name__: x.__version__ for x in (torch, np)}
            (self.folder / "args.json").write_text(json.dumps(content, indent=2))
        if args.track and self.step < args.total_responses:
            import wandb

            names = dict(id=self.folder.resolve().name, dir=self.folder, resume="allow")
            self.wandb = wandb.init(config=asdict(args), **names)
            self.wandb.define_metric("*", step_metric="step")
        print(f"{script}.py, seed {args.seed}, saved in {self.folder}")
        total = max(args.total_responses, self.step)
        self.bar = tqdm(total=total, initial=self.step, unit_scale=True, mininterval=1)
        Run.current = self  # for the error message at the end of this file

    def log(self, table: str, step: int, **metrics: Tensor | float) -> None:
        """Adds a row to updates.csv, and to W&B; raises on a NaN or an infinity."""
        row = {"step": step, "seconds": round(time.time() - self.start, 3)}
        row |= {name: float(x) for name, x in metrics.items()}
        if broken := {name: x for name, x in row.items() if not math.isfinite(x)}:
            raise FloatingPointError(f"not finite at step {step}: {broken}")
        with open(self.folder / f"{table}.csv", "a") as file:
            if file.tell() == 0:
                print(*row, sep=",", file=file)
            print(*row.values(), sep=",", file=file)
        if self.wandb:
            self.wandb.log({"step": step} | {f"{table}/{name}": x for name, x in row.items()})
        self.bar.set_postfix_str(f"judge {row['judge']:.1f}, KL {row['kl']:.1f}", refresh=False)
        self.bar.update(min(step, self.bar.total) - self.bar.n)

    def save(self, step: int, now: bool = False) -> None:
        """Replaces checkpoint.pt if it is more than `save_every` seconds old, or `now`."""
        if not now and time.time() - self.saved_at < self.args.save_every:
            return
        checkpoint = dict(step=step, seconds=time.time() - self.start)
        checkpoint["state"] = {name: part.state_dict() for name, part in self.state.items()}
        checkpoint["csv_size"] = sum(x.stat().st_size for x in self.folder.glob("updates.csv"))
        checkpoint["random"] = torch.get_rng_state()
        try:
            torch.save(checkpoint, self.folder / "checkpoint.tmp")
        except RuntimeError as error:  # what torch.save raises where the disk is full
            raise OSError(f"cannot write a checkpoint to {self.folder}; disk full?") from error
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        self.saved_at = time.time()

    def finish(self, step: int, evaluation: dict[str, Tensor]) -> None:
        """Writes and prints the summary."""
        self.bar.close()
        summary = {"step": step, "seconds": round(time.time() - self.start, 3)}
        summary |= {name: float(x) for name, x in evaluation.items()}
        print(", ".join(f"{name} {round(x, 2):,}" for name, x in summary.items()))
        if self.args.total_responses or not self.args.resume:  # else: keeps training's summary
            (self.folder / "summary.json").write_text(json.dumps(summary, indent=2))
        if self.wandb:
            self.wandb.summary.update(summary)
            self.wandb.finish()


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__.split("\n")[0])
    try:
        if args.resume:  # the run's own arguments become the defaults
            stored = json.loads((args.resume / "args.json").read_text())
            if stored["script"] != Path(__file__).stem:
                raise OSError(f"{args.resume} is a run of {stored['script']}.py")
            args = tyro.cli(Args, default=Args(**stored["args"]))
        train(args)
    except BaseException as error:  # its message is to be the last line on the screen
        if run := getattr(Run, "current", None):
            run.bar.close()
            print(f"To continue from the last checkpoint: --resume {run.folder}")
        users = KeyboardInterrupt, FloatingPointError, OSError, ImportError
        if isinstance(error, users):
            sys.exit(f"{type(error).__name__}: {error}".rstrip(": "))
        raise  # with a traceback, because it may be a bug
