"""Group Relative Policy Optimization (GRPO) of a language model; Shao et al. 2024, Liu et al. 2025.

Changed from rlhf.py: no critic and no GAE. The policy writes a group of responses to each prompt,
and the advantage of a response is its reward minus the mean of its group. A penalty on the KL
divergence of each word, in the loss, replaces rlhf.py's in the rewards. All the rest is the same.

Idea
    A critic is a second network of the same size. The mean reward of several responses to the same
    prompt is a baseline as well. It needs no training, but it is the same for every word, and so is
    the advantage. At one epoch and one minibatch the ratio is 1 and this is REINFORCE with a group
    baseline. The mean contains the response's own reward: without std(r), E[ĝ] = (1 − 1/G) ∇J.

Equations, in the order of the code
    [X-BT]     L_RM = −E[log σ(r(y_w) − r(y_l))]   y_w was preferred; P(y₁ ≻ y₂) = σ(r(y₁) − r(y₂))
    [X-GRPO]   Â = (r(y) − mean(r)) / std(r)   over the G responses of a group
    [AC-08b]   r_t(θ) = π_θ(a_t|s_t) / π_old(a_t|s_t)   the probability ratio, not the reward
    [AC-09b]   L_CLIP = E_t[min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)]
    [X-K3]     k₃ = π_ref/π_θ − 1 − log(π_ref/π_θ)   with E_π[k₃] = KL(π_θ ‖ π_ref)
    [X-BOUND]  E[r(y)] − β KL(π ‖ π_ref) ≤ β log E_ref[exp(r(y)/β)]   equal for π* ∝ π_ref exp(r/β)

Algorithm [L10-6e], with GRPO in place of PPO
    1. supervised fine-tuning: the reference model π_ref learns to write as people do
    2. reward model: r learns which of two responses of π_ref people prefer [L10-6c];
           it gives one number for a response [L10-6d]
    3. the policy [L10-6a] starts as π_θ = π_ref; repeat:
    4.     π_old = π_θ writes a group of G responses to each prompt; the state is the prompt and
           the words so far, the action the next word [L10-6b]
    5.     the advantage of each response within its group
    6.     K times: shuffle the responses into minibatches; one Adam step up
           L_CLIP − β E_t[r_t(θ) k₃] each
A full stop or the 20th word ends a response: what is stored after it has no advantage and no loss.

Not in the text [impl]
    [impl 1]  r starts as π_ref with a new last layer               Ziegler 2019, 2
    [impl 2]  r is the sum of what each word adds to it             Christiano 2017, eq. 1
    [impl 3]  r has mean 0 over responses of π_ref                  Ziegler 2019, 2 (std 1, too)
    [impl 4]  r learns with weight decay                            Christiano 2017, 2.2.3 (ℓ2)
    [impl 5]  learning rates annealed to 0; clipped norm of the gradient        OpenAI Baselines
    [impl 6]  sums over words divided by B · T, not by the length |y|           Liu 2025
    [impl 7]  r_t(θ), unclipped, before k₃   DeepSeek-V3.2 2025, arXiv 2512.02556, eq. 7
    [impl 8]  --no-kl-in-loss: the reward is r(y) − β Σ_t log(π_old/π_ref), as the sum in rlhf.py
∇(r_t(θ) k₃) = r_t(θ) log(π_θ/π_ref) ∇log π_θ, as if this word alone had −β log(π_θ/π_ref) as its
reward: rlhf.py counts the KL that is still to come, grpo.py each word's own. Dividing by std(r)
multiplies β by std(r) in effect; --no-group-std (Liu 2025, Dr. GRPO) does not divide.

Run: python grpo.py
    the judge's score rises from 0.8 to 3.2 ± 0.1 (4 seeds, see benchmarks.md)
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
    group_size: int = 8  # G, responses to each prompt in a group; a divisor of B
    group_std: bool = True  # divide by the std of the group; without it, this is Dr. GRPO
    kl_in_loss: bool = True  # else, the KL divergence of whole responses is in the rewards
    minibatch_size: int = 64  # texts, pairs or responses per step of Adam, in all three stages
    update_epochs: int = 4  # K, epochs over each batch of responses
    clip_coef: float = 0.2  # ε, the ratio is clipped to 1 ± ε [AC-09b]
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


def group_advantages(rewards, group_size, group_std) -> Tensor:
    """Â = (r(y) − mean(r)) / std(r)  [X-GRPO]; rewards (B,), group by group → (B,)."""
    groups = rewards.reshape(-1, group_size)
    advantages = groups - groups.mean(-1, keepdim=True)  # [X-GRPO]
    if group_std:
        advantages = advantages / (groups.std(-1, correction=0, keepdim=True) + 1e-4)  # [X-GRPO]
    return advantages.flatten()


def clipped_surrogate(log_probs, old_log_probs, advantages, clip_coef) -> Tensor:
    """L_CLIP = E_t[min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)]  [AC-09b]; all of one shape → scalar."""
    assert log_probs.shape == old_log_probs.shape == advantages.shape
    ratio = (log_probs - old_log_probs).exp()  # [AC-08b]
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return torch.minimum(ratio * advantages, clipped_ratio * advantages).mean()  # [AC-09b]


def k3(log_probs, ref_log_probs) -> Tensor:
    """k₃ = π_ref/π_θ − 1 − log(π_ref/π_θ)  [X-K3]; (B, T) → (B, T)."""
    x = ref_log_probs - log_probs
    return torch.expm1(x) - x  # exp(x) − 1, exact for small x [X-K3]


def grpo_objective(policy, tokens, old_log_probs, ref_log_probs, advantages, args):
    """L = L_CLIP − β E_t[r_t(θ) k₃]; all (B, ...) → the scalar L, and the terms to be logged."""
    log_probs = token_log_probs(policy, tokens)  # (B, T)
    # [impl 6] Both means are over all B · T places, so that every word has the same weight.
    surrogate = clipped_surrogate(log_probs, old_log_probs, advantages, args.clip_coef)
    # [impl 7] E_old[ratio · k₃] = E_π[k₃], and the same holds for their gradients.
    ratio = (log_probs - old_log_probs).exp()
    kl_loss = (ratio * k3(log_probs, ref_log_probs)).mean()
    kl_coef = args.kl_coef if args.kl_in_loss else 0.0
    return surrogate - kl_coef * kl_loss, {"clipped_surrogate": surrogate, "kl_loss": kl_loss}


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
    if args.group_size < 2 or args.batch_size % args.group_size:
        raise UserError("--group-size has to be a divisor of --batch-size, and at least 2")
    set_up(args)
    stages = Stages(args.ref_responses)
    policy = Transformer(W)
    parameters = [*policy.parameters()]
    adam = torch.optim.Adam(parameters, fused=True)

    run = Run(args, stages=stages, policy=policy, adam=adam)
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
        prompts = (step // args.group_size + torch.arange(args.batch_size) // args.group_size) % P
        responses = rollout(policy, stages, prompts)
        tokens, scores, old_log_probs, ref_log_probs = responses
        mask = response_mask(tokens)  # (B, T)
        step += len(tokens)

        # 5. The advantage of each response within its group, the same for all of its words.
        kl_coef = 0.0 if args.kl_in_loss else args.kl_coef
        rewards = scores - kl_coef * (old_log_probs - ref_log_probs).sum(-1)  # [impl 8]
        advantages = group_advantages(rewards, args.group_size, args.group_std)
        advantages = advantages.unsqueeze(-1) * mask  # (B, T)

        # 6. K times: shuffle the responses into minibatches; one Adam step up L for each.
        losses = []
        for _ in range(args.update_epochs):
            for i in torch.randperm(len(tokens)).split(args.minibatch_size):
                objective, metrics = grpo_objective(
                    policy, tokens[i], old_log_probs[i], ref_log_probs[i], advantages[i], args
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
