"""Reinforcement learning from human feedback (RLHF); Ouyang et al. 2022, Ziegler et al. 2019.

Changed from ppo.py: the policy is a small language model that writes reviews, an action is a word,
and the reward of a response comes from a model that was learned from preferences. A penalty keeps
the policy near the language model that it starts from. Language and judge are defined below.

Idea
    People cannot write down what a good text is, but they can say which of two is better. A reward
    model learns to predict their choice, and PPO increases its reward. But the reward model knows
    only texts like those that were compared: elsewhere it can give high rewards to texts that
    nobody likes. So β times the KL divergence from the reference model, which wrote those texts, is
    subtracted. Here a known function stands for the people, so over-optimisation can be measured.

Equations, in the order of the code
    [X-BT]     L_RM = −E[log σ(r(y_w) − r(y_l))]   y_w was preferred; P(y₁ ≻ y₂) = σ(r(y₁) − r(y₂))
    [X-KL]     r_t = −β (log π_old(a_t|s_t) − log π_ref(a_t|s_t))   plus r(y) at the last word
    [CS-10b]   δ_t = r_t + γ V(s_{t+1}) − V(s_t)   with V(s_{t+1}) = 0 if s_{t+1} is terminal
    [X-GAE]    Â_t = Σ_l (γλ)^l δ_{t+l}
    [AC-08b]   r_t(θ) = π_θ(a_t|s_t) / π_old(a_t|s_t)   the probability ratio, not the reward
    [AC-09b]   L_CLIP = E_t[min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)]
    [X-VF]     L_VF = (V_w(s_t) − V_t^target)²   with V_t^target = Â_t + V(s_t)
    [AC-09c]   L = L_CLIP − c₁ L_VF   to be maximised over θ and w
    [X-BOUND]  E[r(y)] − β KL(π ‖ π_ref) ≤ β log E_ref[exp(r(y)/β)]   equal for π* ∝ π_ref exp(r/β)

Algorithm [L10-6e]
    1. supervised fine-tuning: the reference model π_ref learns to write as people do
    2. reward model: r learns which of two responses of π_ref people prefer [L10-6c];
           it gives one number for a response [L10-6d]
    3. the policy [L10-6a] starts as π_θ = π_ref; repeat:
    4.     π_old = π_θ writes B responses; the state is the prompt and the words so far,
           the action the next word [L10-6b]
    5.     rewards, advantages Â by GAE with γ = 1, and value targets for each word
    6.     K times: shuffle the responses into minibatches; one Adam step up L_CLIP − c₁ L_VF each
A full stop or the 20th word ends a response: what is stored after it has no reward, no advantage
and no loss.

Not in the text [impl]
    [impl 1]  r starts as π_ref with a new last layer               Ziegler 2019, 2
    [impl 2]  r is the sum of what each word adds to it             Christiano 2017, eq. 1
    [impl 3]  r has mean 0 over responses of π_ref                  Ziegler 2019, 2 (std 1, too)
    [impl 4]  r learns with weight decay                            Christiano 2017, 2.2.3 (ℓ2)
    [impl 5]  learning rates annealed to 0; clipped norm of the gradient        OpenAI Baselines
    [impl 6]  sums over words divided by B · T, not by the length |y|           Liu 2025
    [impl 7]  advantages standardised over all words of the batch   (OpenAI: of a minibatch)
    [impl 8]  separate critic, random weights    Ouyang 2022: starts as r; Ziegler 2019: a head on π

Run: python rlhf.py
    the judge's score rises from 0.8 to 3.3 ± 0.2 (4 seeds, see benchmarks.md)
"""

import contextlib
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
    total_responses: int = 25_600  # responses in training; with --resume, 0 means evaluate only
    seed: int = 1  # seed of the networks, the texts and the preferences
    # Stages 1 and 2, which a resumed run does not repeat
    sft_texts: int = 20_000  # texts of human writers for supervised fine-tuning
    sft_epochs: int = 4  # epochs over these texts
    pairs: int = 3_000  # pairs of responses of which people choose one
    rm_epochs: int = 10  # epochs over the pairs
    rm_weight_decay: float = 1.0  # weight decay of the reward model
    supervised_lr: float = 2e-3  # initial learning rate of AdamW in both stages
    ref_responses: int = 6_250  # responses of π_ref to each prompt, to measure π_ref, r and π_θ
    # Algorithm
    kl_coef: float = 0.4  # β, weight of the KL divergence from the reference model
    learning_rate: float = 1e-3  # initial learning rate of Adam
    batch_size: int = 256  # B, responses per update
    minibatch_size: int = 64  # texts, pairs or responses per step of Adam, in all three stages
    update_epochs: int = 4  # K, epochs over each batch of responses
    gae_lambda: float = 0.95  # λ, decay of the weight of later TD errors [X-GAE]
    clip_coef: float = 0.2  # ε, the ratio is clipped to 1 ± ε [AC-09b]
    vf_coef: float = 0.1  # c₁, weight of the value loss, which has no factor ½ here
    max_grad_norm: float = 1.0  # clip the norm of the gradient to this
    # Run
    num_threads: int = 1  # PyTorch's CPU threads
    track: bool = False  # also log to Weights & Biases, set up by WANDB_PROJECT, WANDB_MODE, ...
    eval_responses: int = 250  # responses to each prompt in the evaluation at the end
    save_every: float = 60.0  # seconds between checkpoints, written after updates or episodes
    resume: Path | None = None  # continue the run in this folder; flags given here override its own


# ── Language ──────────────────────────────────────────────────────────────────────────────────────
TOPICS = get_args(Topic)
PRAISE = ["good", "nice", "fine", "warm", "kind", "quiet", "clean", "great"]
BLAME = ["bad", "cold", "rude", "loud", "dirty", "poor", "slow", "dull"]
# A token is an index of WORDS. TOPICS come first there, so a topic has the same index in both.
WORDS = [*TOPICS, *PRAISE, *BLAME, "the", "was", "very", "not", "and", "but", "."]
THE = WORDS.index("the")
STOP = WORDS.index(".")
P = len(TOPICS)  # prompts
W = len(WORDS)
T = 20  # words in a response at most
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
KINDS = [*KIND.values()]  # of each word: "topic" 8 times, "praise" 8 times, ..., "but", "."
# The words of a kind share its weight: after "was", "good" has 3/8 and "very" has 2.
WEIGHTS = [[RULES[x].get(y, 0) / KINDS.count(y) for y in KINDS] for x in [*KINDS, "prompt"]]
# (W + 1, W): probabilities of the next word. FOLLOWS[THE] is 1/8 for each topic and 0 for the rest.
FOLLOWS = F.normalize(torch.tensor(WEIGHTS), p=1)


def judge(prompt: str, response: list[str]) -> float:
    """How much people like a response. It decides preferences and evaluates; it is no reward."""
    score, negated, seen, before = 0.0, False, set(), "prompt"
    for word in response:
        kind = KIND[word]
        if kind not in RULES[before]:
            score -= 1.0  # a break of the grammar
        if word in seen and kind in ("topic", "praise", "blame"):
            score -= 1.0  # a repetition, which is worth nothing else
        elif word == prompt:
            score += 2.0
        elif kind in ("praise", "blame"):
            value = 1.0 if kind == "praise" else -1.0
            score += -0.5 * value if negated else value  # "not good" is half as bad as "bad"
        negated = word == "not" or (negated and word == "very")
        seen.add(word)
        before = kind
    score -= 0.5 * max(len(response) - 14, 0)  # too long
    return score if response[-1] == "." else score - 2.0  # no full stop


def writers(tokens: Tensor) -> Tensor:
    """Human writers, by RULES: tokens (B, L) → log-probabilities of the next word (B, L, W)."""
    before = F.pad(tokens[:, 1:], (1, 0), value=W)  # row W of FOLLOWS: what follows a prompt
    probs = FOLLOWS[before]  # (B, L, W)
    prompts = F.one_hot(tokens[:, :1], W)  # (B, 1, W)
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


def response_mask(tokens: Tensor) -> Tensor:
    """tokens (B, 1 + T) → (B, T): true for the words up to and with the full stop."""
    stops = (tokens[:, 1:] == STOP).long()
    return stops.cumsum(-1) == stops


def decode(tokens: Tensor) -> list[list[str]]:
    """tokens (B, 1 + T) → the words of each response."""
    lengths = response_mask(tokens).sum(-1).tolist()
    return [[WORDS[i] for i in row[1 : 1 + n]] for row, n in zip(tokens.tolist(), lengths)]


def judge_scores(tokens: Tensor) -> Tensor:
    """tokens (B, 1 + T) → the judge's scores (B,)."""
    pairs = zip(tokens[:, 0].tolist(), decode(tokens))
    return torch.tensor([judge(WORDS[prompt], response) for prompt, response in pairs])


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────
class Transformer(nn.Module):
    """tokens (B, L) → (B, L, outputs); the outputs at t depend on the tokens up to t only."""

    def __init__(self, outputs: int, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(W, width)
        self.positions = nn.Embedding(1 + T, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(  # without dropout
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]]  # (B, L, width)
        for layer in self.layers:
            x = layer(x, causal, is_causal=True)
        return self.head(self.norm(x))


class RewardModel(nn.Module):
    """r(y): tokens (B, 1 + T) → one number for each response (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer(1)
        self.register_buffer("mean", torch.zeros(()))  # over responses of the reference model

    def forward(self, tokens: Tensor) -> Tensor:
        # [impl 2] What each word adds, given the prompt and all words before it.
        parts = self.net(tokens)[:, 1:].squeeze(-1)  # (B, T)
        return (parts * response_mask(tokens)).sum(-1) - self.mean  # [L10-6d]


# ── Equations ─────────────────────────────────────────────────────────────────────────────────────
def token_log_probs(policy, tokens) -> Tensor:
    """log π(a_t|s_t) of every word, and 0 after the last: tokens (B, 1 + T) → (B, T)."""
    log_probs = policy(tokens[:, :-1]).log_softmax(-1)  # (B, T, W)
    log_probs = log_probs.gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
    return log_probs * response_mask(tokens)


def sft_loss(model, texts) -> Tensor:
    """−E[log π(a_t|s_t)], the cross-entropy of the words of texts (B, 1 + T)."""
    return -token_log_probs(model, texts).sum() / response_mask(texts).sum()


def bradley_terry_loss(reward_model, chosen, rejected) -> Tensor:
    """L_RM = −E[log σ(r(y_w) − r(y_l))]  [X-BT]; chosen y_w, rejected y_l (B, 1 + T) → scalar."""
    return -F.logsigmoid(reward_model(chosen) - reward_model(rejected)).mean()  # [X-BT]


def word_rewards(scores, log_probs, ref_log_probs, last, kl_coef) -> Tensor:
    """r_t = −β (log π_old(a_t|s_t) − log π_ref(a_t|s_t))  [X-KL], plus r(y) at the last word."""
    rewards = -kl_coef * (log_probs - ref_log_probs)  # (B, T) [X-KL]
    return rewards + scores.unsqueeze(-1) * last  # scores (B,), last (B, T)


def gae(rewards, values, next_values, terminations, truncations, gamma, gae_lambda) -> Tensor:
    """Â_t = Σ_l (γλ)^l δ_{t+l}  [X-GAE]

    All (T, N) → (T, N), by Â_t = δ_t + γλ Â_{t+1}. The recursion starts from 0 at the end of the
    rollout, and restarts at the end of every episode, terminated or truncated.
    """
    assert rewards.shape == values.shape == next_values.shape == terminations.shape
    assert truncations.shape == terminations.shape
    # V(s') = 0 only if terminated; a time limit still bootstraps.
    td_errors = rewards + gamma * ~terminations * next_values - values  # δ [CS-10b]
    traces = gamma * gae_lambda * ~(terminations | truncations)
    td_errors, traces = td_errors.numpy(force=True), traces.numpy(force=True)  # faster in NumPy
    advantages, advantage = np.empty_like(td_errors), 0.0
    for t in reversed(range(len(td_errors))):
        advantages[t] = advantage = td_errors[t] + traces[t] * advantage  # [X-GAE]
    return torch.as_tensor(advantages, device=rewards.device)


def clipped_surrogate(log_probs, old_log_probs, advantages, clip_coef) -> Tensor:
    """L_CLIP = E_t[min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)]  [AC-09b]; all of one shape → scalar."""
    assert log_probs.shape == old_log_probs.shape == advantages.shape
    ratio = (log_probs - old_log_probs).exp()  # [AC-08b]
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return torch.minimum(ratio * advantages, clipped_ratio * advantages).mean()  # [AC-09b]


def ppo_objective(policy, critic, tokens, old_log_probs, advantages, targets, args):
    """L = L_CLIP − c₁ L_VF  [AC-09c]; all (B, ...) → the scalar L, and the terms to be logged."""
    log_probs = token_log_probs(policy, tokens)  # (B, T)
    # [impl 6] Both means are over all B · T places, so that every word has the same weight.
    surrogate = clipped_surrogate(log_probs, old_log_probs, advantages, args.clip_coef)
    values = critic(tokens[:, :-1]).squeeze(-1)  # (B, T)
    value_loss = ((values - targets) ** 2 * response_mask(tokens)).mean()  # [X-VF]
    objective = surrogate - args.vf_coef * value_loss  # [AC-09c]
    return objective, {"clipped_surrogate": surrogate, "value_loss": value_loss}


def best_objective(scores, log_ratios, kl_coef) -> Tensor:
    """E[r(y)] − β KL(π ‖ π_ref) ≤ β log E_ref[exp(r(y)/β)]  [X-BOUND], averaged over the prompts.

    Estimated from responses of any π, as E_ref[f(y)] = E_π[f(y) π_ref(y)/π(y)]: scores r(y) and
    log_ratios log(π(y)/π_ref(y)), (P prompts, n) → scalar. It is too low if the best responses are
    too rare to be among these. For β = 0 it is the largest r(y).
    """
    kl_coef = max(kl_coef, 1e-6)
    x = scores / kl_coef - log_ratios
    return kl_coef * (x.logsumexp(-1) - math.log(x.shape[-1])).mean()  # [X-BOUND]


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────
def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder."""
    set_up(args)
    stages = Stages(args.ref_responses)
    policy = Transformer(W)
    critic = Transformer(1)  # [impl 8]
    parameters = [*policy.parameters()]
    parameters += critic.parameters()
    adam = torch.optim.Adam(parameters, fused=True)

    run = Run(args, stages=stages, policy=policy, critic=critic, adam=adam)
    step = run.step  # responses so far
    if run.only_evaluates and not stages.done:
        raise UserError("this run has no policy yet: it ended in stage 1 or 2")
    if not stages.done:
        # 1. Supervised fine-tuning: π_ref learns to write as people do.
        reference = stages.reference
        texts = generate(writers, torch.arange(args.sft_texts) % P)  # (n, 1 + T)
        train_supervised(reference, sft_loss, [texts], args.sft_epochs, 0.0, args)

        # 2. Reward model: r learns which of two responses of π_ref people prefer.
        reward_model = stages.reward_model
        head = reward_model.net.head.state_dict(prefix="head.")
        reward_model.net.load_state_dict(reference.state_dict() | head)  # [impl 1]
        prompts = torch.arange(args.pairs) % P
        first, second = generate(reference, prompts), generate(reference, prompts)
        first_is_better = torch.sigmoid(judge_scores(first) - judge_scores(second))
        prefer_first = (torch.rand(args.pairs) < first_is_better).unsqueeze(-1)  # (n, 1)
        chosen = torch.where(prefer_first, first, second)  # (n, 1 + T)
        rejected = torch.where(prefer_first, second, first)
        pairs = [chosen, rejected]  # [L10-6c]
        decay = args.rm_weight_decay  # [impl 4]
        train_supervised(reward_model, bradley_terry_loss, pairs, args.rm_epochs, decay, args)
        collect(stages)
        text = "right on new pairs: reward model {rm_accuracy:.2f}, judge {judge_accuracy:.2f}"
        tqdm.write(text.format(**agreement(stages)))

        # 3. The policy starts as π_θ = π_ref.
        policy.load_state_dict(reference.state_dict())  # a language model [L10-6a]
        run.save(step, now=True)
    while step < args.total_responses:
        lr_fraction = 1 - step / args.total_responses
        adam.param_groups[0]["lr"] = lr_fraction * args.learning_rate  # [impl 5]

        # 4. π_old = π_θ writes B responses.
        prompts = torch.arange(step, step + args.batch_size) % P
        responses = rollout(policy, stages, prompts)
        tokens, scores, old_log_probs, ref_log_probs = responses
        mask = response_mask(tokens)  # (B, T)
        step += len(tokens)

        # 5. Rewards, advantages Â by GAE with γ = 1, and value targets for each word.
        # The target is a constant: no gradient flows through it.
        with torch.no_grad():
            values = critic(tokens).squeeze(-1)  # (B, 1 + T)
        values, next_values = values[:, :-1], values[:, 1:]  # (B, T)
        last = mask & ~F.pad(mask[:, 1:], (0, 1))  # also the T-th word, with or without a full stop
        truncations = torch.zeros_like(last)  # none
        rewards = word_rewards(scores, old_log_probs, ref_log_probs, last, args.kl_coef)  # (B, T)
        advantages = gae(
            rewards.T, values.T, next_values.T, last.T, truncations.T, 1.0, args.gae_lambda
        ).T  # (B, T)
        targets = advantages + values
        if mask.sum() > 1:  # the std of a single number is NaN
            words = advantages[mask]
            advantages = (advantages - words.mean()) / (words.std() + 1e-8)  # [impl 7]
        advantages = advantages * mask

        # 6. K times: shuffle the responses into minibatches; one Adam step up L for each.
        losses = []
        for _ in range(args.update_epochs):
            for i in torch.randperm(len(tokens)).split(args.minibatch_size):
                objective, metrics = ppo_objective(
                    policy, critic, tokens[i], old_log_probs[i], advantages[i], targets[i], args
                )
                adam.zero_grad()
                # Ascent on the objective = descent on its negative.
                (-objective).backward()
                metrics["grad_norm"] = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
                adam.step()
                losses.append(torch.stack([*metrics.values()]).detach())

        means = dict(zip(metrics, torch.stack(losses).mean(0)))  # over all minibatches
        run.log("updates", step, **means, **measure(*responses, stages))
        run.save(step, now=step >= args.total_responses)

    run.finish(step, evaluate(policy, stages, args))
    if args.prompt:
        show(args.prompt, policy, stages)
    return run.folder


def train_supervised(model, loss, data, epochs, weight_decay, args) -> None:
    """AdamW on loss(model, *minibatch), with a learning rate that is annealed to 0."""
    adam = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay, fused=True)
    minibatches = []
    for _ in range(epochs):
        minibatches += torch.randperm(len(data[0])).split(args.minibatch_size)
    for i, rows in enumerate(tqdm(minibatches, loss.__name__, leave=False, disable=None)):
        adam.param_groups[0]["lr"] = (1 - i / len(minibatches)) * args.supervised_lr  # [impl 5]
        adam.zero_grad()
        loss(model, *(x[rows] for x in data)).backward()
        adam.step()


class Stages(nn.Module):
    """π_ref and r, from stages 1 and 2, and the scores of n responses of π_ref to each prompt."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.reference = Transformer(W)
        self.reward_model = RewardModel()
        self.register_buffer("done", torch.tensor(False))
        self.register_buffer("scores", torch.zeros(P, n))  # r(y) of responses of π_ref
        self.register_buffer("judge_scores", torch.zeros(P, n))  # of the same responses


@torch.no_grad()
def collect(stages) -> None:
    """Completes the stages: scores responses of π_ref, and shifts r to a mean of 0."""
    prompts = torch.arange(P).repeat_interleave(stages.scores.shape[1]).split(1_000)
    prompts = tqdm(prompts, "responses of the reference", leave=False, disable=None)
    tokens = torch.cat([generate(stages.reference, x) for x in prompts])  # (P · n, 1 + T)
    scores = torch.cat([stages.reward_model(x) for x in tokens.split(1_000)])
    stages.reward_model.mean += scores.mean()  # [impl 3]
    stages.scores = (scores - scores.mean()).reshape(P, -1)
    stages.judge_scores = judge_scores(tokens).reshape(P, -1)
    stages.done = torch.tensor(True)


def agreement(stages) -> dict[str, Tensor]:
    """How often r and the judge agree with people on new pairs, and the loss L_RM of r there."""
    margins = stages.scores.diff()  # (P, n − 1), each response minus the one before it
    judge_margins = stages.judge_scores.diff()
    choice = torch.sigmoid(judge_margins)  # the probability that people choose it
    return {
        "rm_accuracy": 0.5 + ((choice - 0.5) * margins.sign()).mean(),  # a tie counts half
        "rm_loss": F.binary_cross_entropy_with_logits(margins, choice),
        "judge_accuracy": 0.5 + ((choice - 0.5) * judge_margins.sign()).mean(),
    }


@torch.no_grad()
def rollout(policy, stages, prompts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """prompts (B,) → tokens (B, 1 + T), r(y) (B,), log π and log π_ref of each word (B, T)."""
    tokens = generate(policy, prompts)
    ref_log_probs = token_log_probs(stages.reference, tokens)
    return tokens, stages.reward_model(tokens), token_log_probs(policy, tokens), ref_log_probs


def measure(tokens, scores, log_probs, ref_log_probs, stages) -> dict[str, Tensor]:
    """The metrics of the responses that `rollout` returns."""
    ours = judge_scores(tokens)  # (B,)
    theirs = stages.judge_scores[tokens[:, 0]]  # (B, n), as WORDS starts with TOPICS
    return {
        "judge": ours.mean(),
        "win_rate": (ours.unsqueeze(-1) - theirs).sign().mean() / 2 + 0.5,  # a tie counts half
        "score": scores.mean(),
        "kl": (log_probs - ref_log_probs).sum(-1).mean(),  # KL(π ‖ π_ref) of whole responses
        "length": response_mask(tokens).sum(-1).float().mean(),
    }


def evaluate(policy, stages, args) -> dict[str, Tensor]:
    """The metrics of new responses and of r, and the share of the bound that the policy reaches."""
    prompts = torch.arange(P).repeat_interleave(args.eval_responses)
    tokens, scores, log_probs, ref_log_probs = rollout(policy, stages, prompts)
    metrics = measure(tokens, scores, log_probs, ref_log_probs, stages)
    log_ratios = (log_probs - ref_log_probs).sum(-1).reshape(P, -1)
    own_bound = best_objective(scores.reshape(P, -1), log_ratios, args.kl_coef)
    # Both are too low where good responses are missing, so the larger is the better estimate.
    bound = torch.maximum(own_bound, best_objective(stages.scores, 0.0, args.kl_coef))
    share = (metrics["score"] - args.kl_coef * metrics["kl"]) / bound
    return metrics | {"bound": bound, "share": share} | agreement(stages)


@torch.no_grad()
def show(prompt: str, policy, stages) -> None:
    """Prints ten responses of the reference and of the policy, with the judge's score and r."""
    prompts = torch.full((10,), WORDS.index(prompt))
    for name, model in ("reference", stages.reference), ("policy", policy):
        tokens = generate(model, prompts)
        scores = stages.reward_model(tokens)
        for score, r, text in zip(judge_scores(tokens), scores, decode(tokens)):
            print(f"{name:9}  judge {score:5.1f}  r {r:5.1f}  {' '.join(text)}")


# ── Plumbing: the same text in rlhf.py and grpo.py ────────────────────────────────────────────────
class UserError(Exception):
    """What a user can mend; the command line shows it without a traceback."""


def set_up(args: Args) -> None:
    """Checks the sizes, seeds PyTorch's generator, sets the threads."""
    for name, value in asdict(args).items():
        least = 1 if type(value) is int and name not in ("total_responses", "seed") else 0
        least += name == "ref_responses"  # agreement compares two
        if type(value) in (int, float) and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} has to be at least {least}")
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)


@contextlib.contextmanager
def explained(what: str):
    """Turns any error in its block into one line that says what could not be done."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error


class Run:
    """A run's folder: args.json, updates.csv, checkpoint.pt, summary.json.

    A killed run loses at most `save_every` seconds and the unfinished update, or stages 1 and 2 if
    they are not done. On the CPU, a resumed run gives the numbers of an uninterrupted one.
    """

    def __init__(self, args: Args, **state) -> None:
        self.args, self.state = args, state
        self.step = 0
        self.start = self.saved_at = time.time()
        self.only_evaluates = args.resume is not None and args.total_responses == 0
        script = Path(globals().get("__file__", "notebook.py")).stem
        self.folder = Path(args.resume or f"runs/{script}__{args.seed}__{time.time_ns()}")
        if args.resume:
            with explained(f"cannot continue from {self.folder / 'checkpoint.pt'}"):
                self.load(torch.load(self.folder / "checkpoint.pt", "cpu", weights_only=True))
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.save(0, now=True)
        if not self.only_evaluates:
            content = {"script": script, "args": asdict(args) | {"resume": None}}
            content["versions"] = {x.__name__: x.__version__ for x in (torch, np)}
            (self.folder / "args.json").write_text(json.dumps(content, indent=2))
        self.wandb = None
        if args.track and not self.only_evaluates:
            import wandb

            name, config = self.folder.resolve().name, asdict(args)
            with explained("Weights & Biases"):
                self.wandb = wandb.init(
                    id=name, name=name, dir=self.folder, config=config, resume="allow"
                )
            self.wandb.define_metric("*", step_metric="step")
        print(f"{script}.py, seed {args.seed}. To continue: --resume {self.folder}")
        total = max(args.total_responses, self.step)
        self.bar = tqdm(total=total, initial=self.step, unit_scale=True, mininterval=1, leave=False)

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
        checkpoint["csv_sizes"] = {x.name: x.stat().st_size for x in self.folder.glob("*.csv")}
        checkpoint["random"] = torch.get_rng_state()
        with explained(f"cannot write a checkpoint to {self.folder}; disk full?"):
            torch.save(checkpoint, self.folder / "checkpoint.tmp")
            os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        self.saved_at = time.time()

    def load(self, checkpoint: dict) -> None:
        """Goes back to a checkpoint, and cuts updates.csv to the size it had then."""
        for name, part in self.state.items():
            part.load_state_dict(checkpoint["state"][name])
        torch.set_rng_state(checkpoint["random"])
        self.step, self.start = checkpoint["step"], time.time() - checkpoint["seconds"]
        for table in ("updates.csv",) if not self.only_evaluates else ():
            with open(self.folder / table, "a") as file:
                file.truncate(min(file.tell(), checkpoint["csv_sizes"].get(table, 0)))

    def finish(self, step: int, evaluation: dict[str, Tensor]) -> None:
        """Writes and prints the summary."""
        self.bar.close()
        summary = {"step": step, "seconds": round(time.time() - self.start, 3)}
        summary |= {name: float(x) for name, x in evaluation.items()}
        print(", ".join(f"{name} {round(x, 2):,}" for name, x in summary.items()))
        if not self.only_evaluates:
            (self.folder / "summary.json").write_text(json.dumps(summary, indent=2))
        if self.wandb:
            self.wandb.summary.update(summary)
            self.wandb.finish()


if __name__ == "__main__" and "__file__" in globals():  # and not in a cell of a notebook
    args = tyro.cli(Args, description=__doc__.split("\n")[0])
    try:
        if args.resume:  # the run's own arguments become the defaults
            with explained(f"cannot continue from {args.resume / 'args.json'}"):
                stored = json.loads((args.resume / "args.json").read_text())
                assert stored["script"] == Path(__file__).stem, f"a run of {stored['script']}.py"
                default = Args(**stored["args"])
            args = tyro.cli(Args, default=default)
            stages = ["sft_texts", "sft_epochs", "pairs", "rm_epochs", "rm_weight_decay"]
            for name in [*stages, "supervised_lr", "ref_responses", "seed"]:
                if getattr(args, name) != getattr(default, name):
                    raise UserError(f"--{name.replace('_', '-')} cannot change in a resumed run")
        train(args)
    except (KeyboardInterrupt, UserError, FloatingPointError, OSError, ImportError) as error:
        sys.exit(f"\n{type(error).__name__}: {error}")
