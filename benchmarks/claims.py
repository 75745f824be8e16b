"""What the texts claim, measured with the scripts' own functions: tables and figures of claims.md.

    python benchmarks/claims.py          # all claims: 110 minutes on two cores
    python benchmarks/claims.py 1 4      # these only

`claim_N` measures claim N, draws its figure into results/claims/, and returns its table: a list of
rows, the first of which are the headings. A cell is a text, a number, or a list of one number for
each seed, which becomes mean ± half of its 95 % interval (Student's t). The table replaces the
lines of claims.md between `<!-- N -->` and the next empty line.
"""

import contextlib
import copy
import io
import itertools
import math
import os
import statistics
import sys
import tempfile
import textwrap
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import report
import torch
from ablations import ABLATIONS, interval
from run import RESULTS, ROOT, read
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

sys.path.append(str(ROOT))  # after exercises/, if these are tested
import a2c
import a3c
import ddpg
import grpo
import ppo
import reinforce_baseline
import rlhf
import sac
import td3
import trpo
from a2c import n_step_advantages, rollout
from ppo import gae
from reinforce_baseline import discounted_returns, play_episode, policy_gradient_loss

SEEDS = range(5)
COLOURS = "#332288 #cc6677 #ddaa33 #117733 #88ccee #aa4499 #999933 #882255".split()  # Paul Tol's
plt.rcParams |= {"font.size": 12, "axes.prop_cycle": plt.cycler(color=COLOURS)}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "claims"}


# ── What all claims use ───────────────────────────────────────────────────────────────────────────
def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, also of 0 and of 1 (Wilson 1927)."""
    z = 1.96
    middle, half = hits / n + z * z / (2 * n), z * math.sqrt(hits * (n - hits) / n + z * z / 4) / n
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def said(cell) -> str:
    """A cell of a table as text, with three digits."""
    if isinstance(cell, str):
        return cell
    mean, half = interval([*map(float, cell)]) if isinstance(cell, list) else (cell, 0.0)
    if mean == math.inf:
        return "never"
    largest = max(abs(mean), half)
    digits = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    return f"{mean:,.{digits}f}" + f" ± {half:,.{digits}f}" * (half > 0)


def row(name: str, runs: list[dict], keys) -> list:
    """A row of a table: for each key a list of its numbers in all runs."""
    return [name, *([run[key] for run in runs] for key in keys)]


def over_seeds(function, names, seeds=SEEDS) -> dict:
    """name → function(name, seed) for each seed, in two processes."""
    with ProcessPoolExecutor(2) as pool:
        found = {name: pool.map(partial(function, name), seeds) for name in names}
        return {name: [*runs] for name, runs in found.items()}


def trained(script: ModuleType, **args) -> SimpleNamespace:
    """Trains in a temporary folder: the policy and an environment, and what the run has written."""
    here = os.getcwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),  # no bar
    ):
        os.chdir(folder)
        try:
            run = script.train(script.Args(eval_episodes=0, **args))
            state = torch.load(run / "checkpoint.pt", weights_only=True)["state"]
            files = {name: read(run / f"{name}.csv") for name in ("episodes", "updates")}
        finally:
            os.chdir(here)
    env = script.make_env(args["env_id"])
    actor = script.Actor(env.observation_space, env.action_space)
    actor.load_state_dict(state["actor"])
    return SimpleNamespace(env=env, actor=actor, state=state, **files)


@contextlib.contextmanager
def figure(name: str, title: str, panels: int = 2):
    """Yields the axes of a figure of one size, and saves it; its title says what it shows."""
    picture, axes = plt.subplots(1, panels, figsize=(7, 5), layout="constrained", squeeze=False)
    picture.suptitle(textwrap.fill(title, 60))
    yield axes[0]
    for axis in axes[0]:
        if axis.get_legend_handles_labels()[0]:  # below the panel, where no line is
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    picture.savefig(RESULTS / "claims" / f"{name}.svg", metadata={"Date": None})
    picture.savefig(RESULTS / "claims" / f"{name}.png", dpi=120)
    plt.close(picture)


def lines(axis: plt.Axes, x, runs: dict[str, list], **labels) -> None:
    """A line for each name: the mean over seeds of runs[name] (seeds, x), and its interval."""
    for (name, values), style in zip(runs.items(), itertools.cycle(("-", "--", "-.", ":"))):
        mean, half = np.array([interval(column) for column in np.array(values, float).T.tolist()]).T
        (line,) = axis.plot(x, mean, style, marker=".", label=name)
        axis.fill_between(x, mean - half, mean + half, color=line.get_color(), alpha=0.2, lw=0)
    axis.set(**labels)


def in_training(script, env_id: str, seed: int, steps: int, N: int, T: int) -> tuple:
    """A policy in training, N environments, and a rollout of T steps in each."""
    run = trained(script, env_id=env_id, total_timesteps=steps, seed=seed)
    critic = script.Critic(run.env.observation_space)
    critic.load_state_dict(run.state["critic"])
    envs = [script.make_env(env_id) for _ in range(N)]
    obs = np.stack([env.reset(seed=1000 * seed + n)[0] for n, env in enumerate(envs)])
    samples = rollout(envs, obs, run.actor, T)
    _, _, observations, actions, rewards, next_observations, *ends = samples
    with torch.no_grad():
        log_probs = run.actor(observations).log_prob(actions)
        values, next_values = critic(observations), critic(next_observations)
        advantages = gae(
            rewards, values, next_values, *ends, script.Args.gamma, script.Args.gae_lambda
        )
    samples = observations, actions, log_probs, advantages, advantages + values
    return run.actor, critic, envs, [x.flatten(0, 1) for x in samples]


def return_of(actor, envs: list, seed: int) -> float:
    """The mean return of one episode of the stochastic policy in each environment.

    From other first states than those of `in_training`, and without a change to PyTorch's generator.
    """
    with torch.random.fork_rng():
        torch.manual_seed(10**6 + seed)
        obs = [env.reset(seed=10**6 + 100 * seed + n)[0] for n, env in enumerate(envs)]
        _, episodes, *_ = rollout(envs, np.stack(obs), actor, 1000)
    return statistics.mean(float(episode["r"]) for episode in episodes)


# ── 1, 2: variance, and what bootstrapping does to it ─────────────────────────────────────────────
S, A, E = 10, 3, 10  # states, actions; episodes in a batch
WEIGHTS = {  # of ∇log π: of rewards, V(s), V(s'), terminations, truncations (T, ...), and γ
    "G": lambda r, v, next_v, ends, cuts, gamma: discounted_returns(r, gamma),
    "G − batch mean": lambda r, v, next_v, ends, cuts, gamma: discounted_returns(r, gamma),
    "G − V": lambda r, v, next_v, ends, cuts, gamma: discounted_returns(r, gamma) - v,
    "GAE, λ = 0.95": partial(gae, gae_lambda=0.95),
    "δ": partial(gae, gae_lambda=0.0),
}
TASKS = {"CartPole-v1": (10_000, 60), "HalfCheetah-v4": (60_000, 100)}  # steps, batches


class MDP:
    """Random rewards and transitions; an episode ends after each step with probability 0.1; γ = 1."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.rewards = torch.randn(S, A)
        self.chances = (3 * torch.randn(S, A, S)).softmax(-1)
        self.theta = torch.randn(S, A)

    def values(self, theta: Tensor) -> Tensor:
        """V^π(s) (S,), exactly: V = r + 0.9 P V."""
        probs = theta.softmax(-1)
        chain = 0.9 * torch.einsum("sa,sat->st", probs, self.chances)
        return torch.linalg.solve(torch.eye(S) - chain, (probs * self.rewards).sum(-1))

    def episodes(self, n: int) -> tuple[Tensor, ...]:
        """(T, n): states, actions, rewards, next states, ends; and false after an episode's end."""
        state, alive = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool)
        steps = []
        while alive.any():
            action = torch.multinomial(self.theta.softmax(-1)[state], 1).squeeze(-1)
            next_state = torch.multinomial(self.chances[state, action], 1).squeeze(-1)
            ends = torch.rand(n) < 0.1
            reward = self.rewards[state, action] * alive
            steps.append((state, action, reward, next_state, ends, alive))
            state, alive = next_state, alive & ~ends
        return tuple(torch.stack(x) for x in zip(*steps))


def bias_and_variance(mdp: MDP, V: Tensor, functions: dict, n: int = 20_000) -> dict:
    """(name, "bias") → squared bias, (name, "variance") → variance of one episode; over |∇J|²."""

    def loss(theta, states, actions, weights):  # of an episode
        log_probs = theta.log_softmax(-1)[states, actions]
        return policy_gradient_loss(log_probs, weights) * len(weights)

    gradients = torch.vmap(torch.func.grad(loss), (None, 1, 1, 1))  # of n episodes (n, S, A)
    true = torch.func.grad(lambda theta: mdp.values(theta)[0])(mdp.theta).flatten()  # of J
    found = {}
    states, actions, rewards, next_states, ends, alive = mdp.episodes(n)
    samples = rewards, V[states], V[next_states], ends, torch.zeros_like(ends)
    for name, function in functions.items():
        weights = (function(*samples, 1.0) * alive).reshape(len(alive), -1, E)
        if name == "G − batch mean":
            steps = alive.reshape(weights.shape)
            weights = (weights - weights.sum((0, 2), True) / steps.sum((0, 2), True)) * steps
        estimates = -gradients(mdp.theta, states, actions, weights.flatten(1))
        batches = estimates.reshape(-1, E, S * A).mean(1)
        variance = batches.var(0).sum()
        bias = (batches.mean(0) - true).square().sum() - variance / len(batches)
        found[name, "bias"] = (bias / true.square().sum()).item()
        found[name, "variance"] = (E * variance / true.square().sum()).item()
    return found


def episodes_needed(task: str, seed: int) -> dict[str, float]:
    """name → number of episodes for a cosine of 0.9 with the gradient of a policy in training.

    With g = ∇J, the mean m of the estimates and their variance v for one episode, the cosine after
    n episodes is about g·m / (|g| √(|m|² + v/n)). Products of means are of two halves of the
    batches: they are unbiased, their quotient is not. ∇J is the mean of all estimates by G − V.
    """
    steps, batches = TASKS[task]
    args = dict(total_timesteps=steps, batch_size=min(steps // 10, 2048))
    run = trained(reinforce_baseline, env_id=task, seed=seed, **args)
    actor, env = run.actor, run.env
    critic = reinforce_baseline.Critic(env.observation_space)
    critic.load_state_dict(run.state["critic"])
    env.reset(seed=seed)
    gradients = {name: [] for name in WEIGHTS}
    for _ in range(batches):
        weights, log_probs = {name: [] for name in WEIGHTS}, []
        for _ in range(E):
            obs, actions, rewards, _ = play_episode(env, actor)
            with torch.no_grad():
                values = critic(obs)
            next_values = torch.cat((values[1:], torch.zeros(1)))  # its end is a terminal state
            never = torch.zeros_like(values, dtype=torch.bool)
            samples = [x.unsqueeze(-1) for x in (rewards, values, next_values, never, never)]
            for name, function in WEIGHTS.items():
                weights[name].append(function(*samples, reinforce_baseline.Args.gamma).squeeze(-1))
            log_probs.append(actor(obs).log_prob(actions))
        for name in WEIGHTS:
            weight = torch.cat(weights[name])
            weight = weight - weight.mean() * (name == "G − batch mean")
            loss = policy_gradient_loss(torch.cat(log_probs), weight) * len(weight) / E
            gradient = torch.autograd.grad(loss, [*actor.parameters()], retain_graph=True)
            gradients[name].append(-parameters_to_vector(gradient))
    halves = {name: torch.stack(x).unflatten(0, (2, -1)).mean(1) for name, x in gradients.items()}
    (g0, g1), needed = halves["G − V"], {}
    for name, (m0, m1) in halves.items():
        variance = E * torch.stack(gradients[name]).var(0).sum()
        along, length = (g0 @ m1 + g1 @ m0) / 2, g0 @ g1
        room = (along / 0.9) ** 2 / length - m0 @ m1
        found = min(along, length, room) > 0
        needed[name] = (variance / room).item() if found else math.inf
    return needed


def claim_1() -> list:
    mdps = [MDP(seed) for seed in SEEDS]
    exact = [bias_and_variance(mdp, mdp.values(mdp.theta), WEIGHTS) for mdp in mdps]
    needed = over_seeds(episodes_needed, TASKS)
    middle = {x: [statistics.median(y[name] for y in needed[x]) for name in WEIGHTS] for x in TASKS}
    with figure("1", "A critic cuts the variance of the gradient") as axes:
        variances = [statistics.mean(x[name, "variance"] for x in exact) for name in WEIGHTS]
        axes[0].barh([*WEIGHTS], variances, color=COLOURS[4])
        axes[0].set(xlabel="variance / |∇J|², small MDP")
        for i, task in enumerate(TASKS):
            places = np.arange(len(WEIGHTS)) + 0.4 * i - 0.2
            axes[1].barh(places, [min(x, 1e5) for x in middle[task]], 0.4, label=task)
        axes[1].set(xscale="log", yticks=[], xlabel="episodes for a cosine of 0.9")
        for axis in axes:
            axis.invert_yaxis()
    rows = [["weight of ∇log π", "squared bias", "variance", *TASKS]]
    for i, name in enumerate(WEIGHTS):
        numbers = row(name, exact, [(name, "bias"), (name, "variance")])
        rows.append([*numbers, *(middle[task][i] for task in TASKS)])
    return rows


ARMS = torch.tensor([[0.55], [0.62], [0.90], [0.58], [0.50]])  # (A, 1): the rewards of [L3-8]
COSTS_FIRST = torch.zeros(2, 10)  # (A, T): action 1 costs 1 at once and brings 1.5 at last
COSTS_FIRST[1, 0], COSTS_FIRST[1, -1] = -1, 1.5


def left(rewards: Tensor, advantages, n: int) -> float:
    """The share of the gradient that advantages(G) leaves, for a uniform policy; G (T, n).

    By enumeration of the first actions in n episodes; rewards (A, T) are those after each action.
    """
    whole = less = 0.0
    for actions in itertools.product(range(len(rewards)), repeat=n):
        G = discounted_returns(rewards[list(actions)].T, 1.0)
        best = int(rewards.sum(-1).argmax())
        score = (torch.tensor(actions) == best).float() - 1 / len(rewards)  # ∂ log π / ∂ θ_best
        whole += (score * G[0]).sum().item()
        less += (score * advantages(G)).sum().item()
    return less / whole


left_by_batch_mean = partial(left, COSTS_FIRST, lambda G: G[0] - G.mean())
left_by_group_mean = partial(left, ARMS, lambda G: grpo.group_advantages(G[0], len(G[0]), False))


def variance_ratios() -> tuple[float, float]:
    """How much less variance the baseline E[r] leaves on the arms, at first and at π(best) = 0.9."""
    theta, found = torch.zeros(5), []
    while not found or theta.softmax(-1)[2] < 0.9:
        probs, variances = theta.softmax(-1), []
        for baseline in 0.0, probs @ ARMS:
            samples = (torch.eye(5) - probs) * (ARMS - baseline)  # one row an arm
            mean = probs @ samples
            variances.append(probs @ (samples - mean).square().sum(-1))
        found.append((variances[0] / variances[1]).item())
        theta = theta + 0.5 * mean
    return found[0], found[-1]


def claim_1b() -> list:
    numbers = [1, 2, 4, 6]
    rows = [["left of the gradient", *(f"n = {n}" for n in numbers)]]
    rows.append(["batch mean of n episodes", *map(left_by_batch_mean, numbers)])
    rows.append(["GRPO's mean of n responses", "-", *map(left_by_group_mean, numbers[1:])])
    rows.append(["**five arms**", "π uniform", "π(best) = 0.9", "", ""])
    return rows + [["variance / variance with b = E[r]", *variance_ratios(), "", ""]]


LAMBDAS, STEPS, FITS = [0.0, 0.5, 0.8, 0.9, 0.95, 1.0], [1, 2, 4, 8, 16, 200], [1, 10, 100]


def n_step(n: int, *samples) -> Tensor:
    """Advantages in rollouts of n steps, as in a2c.py."""
    *samples, gamma = samples
    pieces = range(0, len(samples[0]), n)
    return torch.cat([n_step_advantages(*(x[t : t + n] for x in samples), gamma) for t in pieces])


def errors(fit: int, seed: int) -> dict:
    """bias_and_variance for all λ and n, with a table V of the mean returns in `fit` episodes."""
    mdp = MDP(seed)
    states, _, rewards, _, _, alive = mdp.episodes(fit)
    returns = discounted_returns(rewards, 1.0)[alive]
    visits = torch.bincount(states[alive], minlength=S)
    V = torch.zeros(S).index_add(0, states[alive], returns) / visits.clamp(min=1)
    functions = {f"λ = {x}": partial(gae, gae_lambda=x) for x in LAMBDAS}
    functions |= {f"n = {n}": partial(n_step, n) for n in STEPS}
    return bias_and_variance(mdp, V, functions, 5000)


def claim_2() -> list:
    found = over_seeds(errors, FITS, range(10))
    with figure("2", "A good critic can bootstrap at once") as axes:
        for axis, kind, x in (axes[0], "λ", LAMBDAS), (axes[1], "n", STEPS):
            total = {
                f"critic of {fit} episodes": [
                    [y[f"{kind} = {z}", "bias"] + y[f"{kind} = {z}", "variance"] / E for z in x]
                    for y in found[fit]
                ]
                for fit in FITS
            }
            lines(axis, range(len(x)), total, yscale="log", xlabel=kind)
            axis.set_xticks(range(len(x)), ["∞" if y == 200 else y for y in x])
        axes[0].set_ylabel("squared error of ten episodes / |∇J|²")
    keys = [*itertools.product([f"λ = {x}" for x in (0.0, 0.9, 1.0)], ("bias", "variance"))]
    head = [f"{name}: {'squared ' * (kind == 'bias')}{kind}" for name, kind in keys]
    rows = [["episodes of the critic", *head]]
    return rows + [row(str(fit), found[fit], keys) for fit in FITS]


# ── 3: parallel environments ──────────────────────────────────────────────────────────────────────
NUMBERS, WORKERS = [1, 4, 16, 64], [1, 2, 4, 8]


def effective_samples(kind: tuple, seed: int, numbers=NUMBERS, steps: int = 2000) -> dict:
    """N → independent samples among the 256 in a rollout of N environments; untrained policy.

    The variance of single observations over that of the mean of a rollout, of each entry; of these
    the median. Staggered, environment n is reset after rollout n, as in a2c.py; then come the
    rollouts that count, in which each environment plays at least `steps` steps.
    """
    env_id, start = kind
    found = {}
    for N in numbers:
        torch.manual_seed(seed)
        envs = [a2c.make_env(env_id) for _ in range(N)]
        actor = a2c.Actor(envs[0].observation_space, envs[0].action_space)
        obs = np.stack([env.reset(seed=10**6 * seed + n)[0] for n, env in enumerate(envs)])
        T, means, variances = 256 // N, [], []
        for i in range(1, N + steps // min(T, 16)):
            obs, _, observations, *_ = rollout(envs, obs, actor, T)
            if start == "staggered" and i < N:
                obs[i], _ = envs[i].reset()
            if i >= N:
                means.append(observations.mean((0, 1)))
                variances.append(observations.var((0, 1)))
        between = torch.stack(means).var(0)
        found[N] = ((torch.stack(variances).mean(0) + between) / between).median().item()
    return found


def staleness(name: str, seed: int, total: int = 50_000) -> dict[int, float]:
    """W → mean return on CartPole-v1 in the second half of training with W workers."""
    script, number = {"a3c.py": (a3c, "num_workers"), "a2c.py": (a2c, "num_envs")}[name]
    args = dict(learning_rate=a3c.Args.learning_rate, total_timesteps=total, seed=seed)
    found = {}
    for W in WORKERS:
        run = trained(script, env_id="CartPole-v1", **args, **{number: W})
        late = [x for x in run.episodes if int(x["step"]) > total / 2]
        found[W] = statistics.mean(float(x["episode_return"]) for x in late)
    return found


def claim_3() -> list:
    kinds = [*itertools.product(("Pendulum-v1", "HalfCheetah-v4"), ("in lockstep", "staggered"))]
    samples = over_seeds(effective_samples, kinds)
    # One run after another: a3c.py's workers need the cores.
    returns = {x: [staleness(x, seed) for seed in range(10)] for x in ("a3c.py", "a2c.py")}
    with figure("3", "Many environments help where the samples of one are correlated") as axes:
        many = {", ".join(kind): [[*x.values()] for x in samples[kind]] for kind in kinds}
        lines(axes[0], NUMBERS, many, xscale="log", yscale="log", xlabel="N environments")
        axes[0].set_xticks(NUMBERS, NUMBERS)
        axes[0].set_yticks(ticks := [20, 50, 100, 200], ticks)
        axes[0].minorticks_off()
        axes[0].set_ylabel("effective samples of 256")
        workers = {name: [[*x.values()] for x in returns[name]] for name in returns}
        lines(axes[1], WORKERS, workers, xlabel="workers, or environments")
        axes[1].set_xticks(WORKERS)
        axes[1].set_ylabel("return on CartPole-v1")
    rows = [["effective samples of 256", *(f"N = {N}" for N in NUMBERS)]]
    rows += [row(", ".join(kind), samples[kind], NUMBERS) for kind in kinds]
    rows.append(["**return on CartPole-v1**", *(f"**W = {W}**" for W in WORKERS)])
    rows.append(row("a3c.py, W workers", returns["a3c.py"], WORKERS))
    return rows + [row("a2c.py, W environments", returns["a2c.py"], WORKERS)]


# ── 4, 5: how far a step may go ───────────────────────────────────────────────────────────────────
LENGTHS = [0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
DIRECTIONS = ["gradient", "natural gradient"]


def along_steps(env_id: str, seed: int) -> dict:
    """(direction, length, "KL" or "return") → KL, change of the return; and those of trpo.py."""
    actor, _, envs, samples = in_training(trpo, env_id, seed, 200_000, 16, 500)
    observations, actions, old_log_probs, advantages, _ = samples
    advantages = (advantages - advantages.mean()) / advantages.std()
    parameters = [*actor.parameters()]
    with torch.no_grad():
        old_dist = actor(observations)

    def surrogate_and_kl() -> tuple[Tensor, Tensor]:
        dist = actor(observations)
        gain = trpo.surrogate(dist.log_prob(actions), old_log_probs, advantages)
        return gain, trpo.mean_kl(old_dist, dist)

    gain, kl = surrogate_and_kl()
    g = parameters_to_vector(torch.autograd.grad(gain, parameters, retain_graph=True))
    kl_gradient = parameters_to_vector(torch.autograd.grad(kl, parameters, create_graph=True))
    args = trpo.Args()
    fisher = partial(trpo.fisher_vector_product, kl_gradient, parameters, damping=args.cg_damping)
    x = trpo.conjugate_gradient(fisher, g, args.cg_iterations)
    step = trpo.full_step(x, fisher(x), args.max_kl)
    old = parameters_to_vector(parameters).detach()
    found = {"before": return_of(actor, envs, seed)}
    for direction, way in zip(DIRECTIONS, (g, x)):
        for length in LENGTHS:
            vector_to_parameters(old + length * way / way.norm(), parameters)
            found[direction, length, "KL"] = surrogate_and_kl()[1].item()
            change = return_of(actor, envs, seed) - found["before"]
            found[direction, length, "return"] = change
    vector_to_parameters(old, parameters)
    fraction, *_ = trpo.line_search(
        parameters, step, surrogate_and_kl, args.max_kl, args.line_search_steps
    )
    found["TRPO", "KL"] = surrogate_and_kl()[1].item()
    found["TRPO", "return"] = return_of(actor, envs, seed) - found["before"]
    return found | {("TRPO", "length"): fraction * step.norm().item()}


def claim_4() -> list:
    (found,) = over_seeds(along_steps, ["HalfCheetah-v4"]).values()
    marks = {key: [x["TRPO", key] for x in found] for key in ("length", "KL", "return")}
    title = "A step that goes far in KL ruins a policy; along the gradient even a short one does"
    with figure("4", title) as axes:
        for d in DIRECTIONS:
            kl, change = (
                [[x[d, n, key] for n in LENGTHS] for x in found] for key in ("KL", "return")
            )
            lines(axes[0], LENGTHS, {f"along the {d}": kl}, xscale="log", yscale="log")
            x = np.exp(np.log(kl).mean(0))  # geometric means over the seeds
            lines(axes[1], x, {f"along the {d}": change}, xscale="log", ylabel="change of return")
        axes[0].set(xlabel="length of the step |Δθ|", ylabel="KL(π_old ‖ π_θ)")
        axes[1].set(xlabel="KL(π_old ‖ π_θ)")
        for axis, x, y in (axes[0], "length", "KL"), (axes[1], "KL", "return"):
            axis.plot(marks[x], marks[y], "k*", label="step of trpo.py")
    shown = 0.2, 0.8, 3.2
    rows = [["change of the return", *(f"length {n}" for n in shown), "step of trpo.py"]]
    for key, name in ("return", "along the "), ("KL", "KL, "):
        for d in DIRECTIONS:
            last = marks[key] if d == "natural gradient" else ""
            rows.append([*row(name + d, found, [(d, n, key) for n in shown]), last])
    return rows + [["return before: " + said([x["before"] for x in found]), "", "", "", ""]]


OBJECTIVES = {"no clip": (math.inf, 0.0), "clip": (0.2, 0.0)}  # ε, β at first
OBJECTIVES |= {"KL penalty, β = 1": (math.inf, 1.0), "adaptive KL penalty": (math.inf, 1.0)}
EPOCHS = [10, 40]


def epochs(policy: tuple, objective: str, seed: int) -> dict:
    """("KL" or "beyond" 1 ± 0.2, epoch) and ("return", one of EPOCHS), all on one rollout."""
    *models, envs, samples = policy
    actor, critic = copy.deepcopy(models)
    old_actor = copy.deepcopy(models[0]).requires_grad_(False)
    clip_coef, beta = OBJECTIVES[objective]
    args = ppo.Args(clip_coef=clip_coef)
    adam = ppo.Adam([*actor.parameters(), *critic.parameters()], args.learning_rate)
    found, before = {}, return_of(actor, envs, seed)
    torch.manual_seed(seed)  # the same minibatches for all objectives
    for epoch in range(1, EPOCHS[-1] + 1):
        for rows in torch.randperm(len(samples[0])).split(64):
            batch = [x[rows] for x in samples]
            gain, _ = ppo.ppo_objective(actor, critic, *batch, args)
            if beta:
                gain = gain - beta * trpo.mean_kl(old_actor(batch[0]), actor(batch[0]))
            adam.step(-gain, args.max_grad_norm)
        with torch.no_grad():
            ratio = (actor(samples[0]).log_prob(samples[1]) - samples[2]).exp()
            kl = trpo.mean_kl(old_actor(samples[0]), actor(samples[0])).item()
        if objective == "adaptive KL penalty":  # Schulman 2017, section 4, here after each epoch
            beta *= 2 if kl > 1.5 * 0.01 else 0.5 if kl < 0.01 / 1.5 else 1
        found["KL", epoch] = kl
        found["beyond", epoch] = ((ratio - 1).abs() > 0.2).float().mean().item()
        if epoch in EPOCHS:
            found["return", epoch] = return_of(actor, envs, seed) - before
    return found


def all_epochs(env_id: str, seed: int) -> dict[str, dict]:
    policy = in_training(ppo, env_id, seed, 150_000, 8, 256)
    return {objective: epochs(policy, objective, seed) for objective in OBJECTIVES}


def claim_5() -> list:
    (seeds,) = over_seeds(all_epochs, ["HalfCheetah-v4"]).values()
    found = {objective: [x[objective] for x in seeds] for objective in OBJECTIVES}
    x = range(1, EPOCHS[-1] + 1)
    with figure("5", "The clip takes away the reason to go far") as axes:
        logs = {o: [[math.log10(run["KL", k]) for k in x] for run in found[o]] for o in found}
        beyond = {o: [[run["beyond", k] for k in x] for run in found[o]] for o in found}
        lines(axes[0], x, logs, xlabel="epochs K", ylabel="log₁₀ KL(π_old ‖ π_θ)")
        lines(axes[1], x, beyond, xlabel="epochs K", ylabel="share of ratios beyond 1 ± 0.2")
    keys = [*itertools.product(("KL", "beyond", "return"), EPOCHS)]
    kinds = {"KL": "KL", "beyond": "beyond 1 ± 0.2", "return": "change of the return"}
    rows = [["objective", *(f"{kinds[kind]}, K = {K}" for kind, K in keys)]]
    return rows + [row(objective, found[objective], keys) for objective in OBJECTIVES]


# ── 6: sample efficiency ──────────────────────────────────────────────────────────────────────────
def claim_6() -> list:
    with plt.style.context("default"):  # the figure as report.py draws it
        reached = report.steps_and_seconds("HalfCheetah-v4")
    rows = [[f"to a training return of {report.GOAL:,}", "steps", "minutes"]]
    return rows + [[name, f"{steps:,.0f}", minutes] for steps, minutes, name in sorted(reached)]


# ── 7, 8: overestimation and entropy ──────────────────────────────────────────────────────────────
SMALL = dict(learning_starts=1000, batch_size=64)
TD_TARGET = td3.td_target
REPAIRS = {
    "ddpg.py": (ddpg, {}),
    "ddpg.py, τ / 2": (ddpg, dict(tau=0.0025)),
    "td3.py": (td3, {}),
    "td3.py, one critic": (td3, {}),
    # The delay also halves how often the target networks move; τ / 2 leaves their speed.
    "td3.py, no delay, τ / 2": (td3, dict(policy_frequency=1, tau=0.0025)),
    "td3.py, no noise": (td3, dict(policy_noise=0.0)),
}
AVERAGING = {f"ddpg.py, τ = {tau}": (ddpg, dict(tau=tau)) for tau in (1.0, 0.1, 0.0005)}
ALPHAS = {"automatic α": (sac, {})}
ALPHAS |= {f"α = {a}": (sac, dict(alpha=a, autotune=False)) for a in (0.02, 0.2, 2.0)}
NOISES = [0.0, 0.5, 1.0, 2.0]  # std, in units of half the action range


class Worthless(gym.Env):
    """Random observations; rewards z, −z, z', −z', ... with z ~ N(0, 1), whatever is done.

    E[Q(s, a)] = 0 for all s and a, and the rewards in a buffer have a mean of 0, too.
    """

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    reward = None  # of the next step

    def reset(self, seed=None, options=None) -> tuple:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple:
        obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        reward = self.np_random.normal() if self.reward is None else self.reward
        self.reward = -reward if self.reward is None else None
        return obs, reward, False, False, {}


gym.register("Worthless-v0", Worthless, max_episode_steps=200)


def one_critic(rewards, next_q1, next_q2, terminations, gamma) -> Tensor:
    return TD_TARGET(rewards, next_q1, next_q1, terminations, gamma)


def overestimation(name: str, seed: int, steps: int = 6000) -> list[float]:
    """The mean of Q_w(s, a) over each episode's updates, where Q = 0."""
    script, args = (REPAIRS | AVERAGING)[name]
    td3.td_target = one_critic if "one critic" in name else TD_TARGET
    args = SMALL | args | dict(env_id="Worthless-v0", total_timesteps=steps, seed=seed)
    return [float(x["q_value"]) for x in trained(script, **args).updates]


def claim_7() -> list:
    found = over_seeds(overestimation, REPAIRS | AVERAGING)
    steps, shown = range(1200, 6001, 200), (4, 14, 24)
    with figure("7", "Where all actions are worth 0, ddpg.py's critic rises most") as axes:
        for axis, names in (axes[0], [*REPAIRS]), (axes[1], ["ddpg.py", *AVERAGING]):
            lines(axis, steps, {name: found[name] for name in names}, xlabel="environment steps")
            axis.axhline(0, color="grey", linewidth=0.8)
        axes[0].set_ylabel("Q, where the truth is 0")
        axes[1].set_yscale("symlog", linthresh=1)
    rows = [["Q after", *(f"{steps[i]:,} steps" for i in shown)]]
    return rows + [row(name, found[name], shown) for name in found]


def swing(actor, seed: int, noise: float) -> float:
    """The mean return of 100 episodes of Pendulum-v1; its equations work on arrays."""
    env, random, total = gym.make("Pendulum-v1").unwrapped, np.random.default_rng(seed), 0.0
    env.state = np.stack((random.uniform(-np.pi, np.pi, 100), random.uniform(-1, 1, 100)))
    for _ in range(200):
        action = actor.mode(env._get_obs().T).T  # (1, 100)
        _, reward, *_ = env.step(action + 2 * noise * random.normal(size=action.shape))
        total += reward.mean()
    return float(total)


def robustness(name: str, seed: int, steps: int = 10_000) -> dict:
    """The entropy in training as "H", and the return after it under each noise of NOISES."""
    script, args = (ALPHAS | {"td3.py": (td3, {})})[name]
    args = SMALL | args | dict(env_id="Pendulum-v1", total_timesteps=steps, seed=seed)
    run = trained(script, **args)
    entropy = [float(x["entropy"]) for x in run.updates if "entropy" in x]
    return {"H": entropy} | {noise: swing(run.actor, seed, noise) for noise in NOISES}


def claim_8() -> list:
    found = over_seeds(robustness, [*ALPHAS, "td3.py"])
    with figure("8", "The automatic α holds the entropy at its target") as axes:
        entropy = {name: [x["H"] for x in found[name]] for name in ALPHAS}
        lines(axes[0], range(1200, 10_001, 200), entropy, xlabel="environment steps")
        axes[0].axhline(-1, color="grey", linestyle=":", label="H̄ = −1")
        axes[0].set_ylabel("entropy H, in nats")
        returns = {name: [[x[noise] for noise in NOISES] for x in found[name]] for name in found}
        lines(axes[1], NOISES, returns, xlabel="std of noise on the actions", ylabel="return")
    rows = [["Pendulum-v1", "H at the end", *(f"return, noise {noise}" for noise in NOISES)]]
    for name, runs in found.items():
        entropy = [x["H"][-1] for x in runs] if name in ALPHAS else "-"
        rows.append([name, entropy, *row(name, runs, NOISES)[1:]])
    return rows


# ── 9, 11: two small environments ─────────────────────────────────────────────────────────────────
class Tempting(gym.Env):
    """A corridor: a reward of 1 two steps to the left, 2 eight to the right, −0.05 elsewhere."""

    observation_space = gym.spaces.Discrete(11)  # make_env makes it one-hot
    action_space = gym.spaces.Discrete(2)
    start = 2

    def reset(self, seed=None, options=None) -> tuple:
        super().reset(seed=seed)
        self.place = self.start
        return self.place, {}

    def step(self, action: int) -> tuple:
        self.place += 1 if action else -1
        reward = {0: 1.0, 10: 2.0}.get(self.place, -0.05)
        return self.place, reward, reward > 0, False, {}


class Invest(gym.Env):
    """Action 1 costs 3 once; from then on each step brings 1.3 in place of 1. Cut after 5 steps."""

    observation_space = action_space = gym.spaces.Discrete(2)

    def __init__(self, limit_ends: bool) -> None:
        self.limit_ends = limit_ends

    def reset(self, seed=None, options=None) -> tuple:
        super().reset(seed=seed)
        self.rich, self.steps = int(self.np_random.integers(2)), 0
        return self.rich, {}

    def step(self, action: int) -> tuple:
        reward = 1.3 if self.rich else -2.0 if action else 1.0
        self.rich, self.steps = max(self.rich, int(action)), self.steps + 1
        cut = self.steps == 5
        return self.rich, reward, cut and self.limit_ends, cut and not self.limit_ends, {}


gym.register("Tempting-v0", Tempting, max_episode_steps=100)
gym.register("Invest-v0", partial(Invest, limit_ends=False))
gym.register("InvestEnds-v0", partial(Invest, limit_ends=True))


SETTINGS = dict(num_steps=16, learning_rate=1e-2)  # of a2c.py


def finds_better(beta: float, seed: int, steps: int = 20_000) -> float:
    """The share of 100 episodes of the stochastic policy that end at the better reward."""
    args = SETTINGS | dict(num_envs=8, total_timesteps=steps, ent_coef=beta, seed=seed)
    run = trained(a2c, env_id="Tempting-v0", **args)
    return statistics.mean(float(play_episode(run.env, run.actor)[2][-1] == 2) for _ in range(100))


def invests(env_id: str, seed: int, steps: int = 60_000) -> bool:
    """Whether the poor policy invests rather than not."""
    args = SETTINGS | dict(num_envs=32, total_timesteps=steps, seed=seed)
    actor = trained(a2c, env_id=env_id, **args).actor
    return bool(actor.mode(np.eye(2, dtype=np.float32)[0]))


def claim_9() -> list:
    found = over_seeds(finds_better, [0.0, 0.03, 0.1, 0.3, 1.0], range(20))
    hits = {beta: sum(share > 0.5 for share in shares) for beta, shares in found.items()}
    title = "A bonus finds the better reward; too large a bonus leaves a random walk"
    with figure("9", title, 1) as (axis,):
        for place, n in enumerate(hits.values()):
            axis.plot([place, place], wilson(n, 20), color=COLOURS[0])
            axis.plot(place, n / 20, "o", color=COLOURS[0])
        axis.set_xticks(range(len(found)), [*found])
        axis.set(xlabel="β", ylabel="share of 20 seeds", ylim=(-0.02, 1.02))
    rows = [["a2c.py", *(f"β = {beta}" for beta in found)]]
    rows.append(["seeds of 20 that find the better reward", *map(str, hits.values())])
    bounds = ("{:.2f} to {:.2f}".format(*wilson(n, 20)) for n in hits.values())
    rows.append(["95 % interval of their share", *bounds])
    return rows + [["episodes that end there, share", *found.values()]]


def claim_11() -> list:
    names, returns = {"bootstraps": "Invest-v0", "is an end": "InvestEnds-v0"}, {}
    found = over_seeds(invests, names.values(), range(10))
    counts = {name: sum(found[env_id]) for name, env_id in names.items()}
    for name, variant in zip(names, ("default", "limit-ends")):
        rows = [x for x in read(ABLATIONS) if x["variant"] == variant]
        returns[name] = [float(x["training_return"]) for x in rows]
    with figure("11", "Where a time limit is an end, the policy is short-sighted") as axes:
        axes[0].bar(list(names), [n / 10 for n in counts.values()], color=COLOURS[4])
        axes[0].set(ylabel="share of 10 seeds that invest", ylim=(0, 1.05))
        for name, numbers in returns.items():
            axes[1].plot([name] * len(numbers), numbers, "o")
        axes[1].set(ylabel="return of ppo.py on HalfCheetah-v4", ylim=(0, None), xlim=(-0.5, 1.5))
    rows = [["a time limit", "seeds of 10 that invest", "return of ppo.py, HalfCheetah-v4"]]
    return rows + [[name, f"{counts[name]}", returns[name]] for name in names]


# ── 10: estimators of the KL divergence ───────────────────────────────────────────────────────────
def kl_estimators() -> dict[str, tuple]:
    """name → mean and std, or a gradient's part along the true one and across it (true length = 1).

    By enumeration of all texts of two words after "was". π_ref follows the rules of the language,
    with 5 % of other words; π likes praise.
    """
    V = rlhf.W
    ref = (0.95 * rlhf.FOLLOWS[:V] + 0.05 / V).log()  # (V, V): the next word, given a word
    theta = ref.clone()
    theta[:, [rlhf.WORDS.index(word) for word in rlhf.PRAISE]] += 1.5
    theta.requires_grad_()
    words = torch.cartesian_prod(torch.arange(V), torch.arange(V))  # (V², 2)
    before = torch.stack((torch.full((V * V,), rlhf.WORDS.index("was")), words[:, 0]), -1)
    log_probs, ref_log_probs = theta.log_softmax(-1)[before, words], ref[before, words]
    probs = log_probs.sum(-1).exp()  # (V²,)
    kl = (probs * (log_probs - ref_log_probs).sum(-1)).sum()
    (true,) = torch.autograd.grad(kl, theta, retain_graph=True)
    probs, ratio = probs.detach(), (log_probs - log_probs.detach()).exp()
    never = torch.zeros_like(words)
    estimators = {  # (V², 2)
        "k₁": rlhf.word_rewards(torch.zeros(V * V), log_probs, ref_log_probs, never, -1.0),
        "k₂": (log_probs - ref_log_probs) ** 2 / 2,
        "k₃": grpo.k3(log_probs, ref_log_probs),
    }
    found = {}
    for name, k in estimators.items():
        mean = probs @ k.sum(-1)
        found[name] = mean.item(), (probs @ (k.sum(-1) - mean) ** 2).sqrt().item()
        to_go = k.flip(-1).cumsum(-1).flip(-1).detach()  # of this word and the next
        places = {"reward": log_probs * to_go, "loss": k, "loss, ratio": ratio * k}
        for place, terms in places.items():
            (g,) = torch.autograd.grad(probs @ terms.sum(-1), theta, retain_graph=True)
            along = (g * true).sum() / true.square().sum()
            across = (g - along * true).norm() / true.norm()
            found[f"{name} in the {place}"] = along.item(), across.item()
    return found


def claim_10() -> list:
    found = kl_estimators()
    places = "reward", "loss", "loss, ratio"
    rows = [["", "mean", "std", *(f"in the {x}: along, across" for x in places)]]
    for k in "k₁", "k₂", "k₃":
        arrows = ["{:+.2f}, {:.2f}".format(*found[f"{k} in the {place}"]) for place in places]
        rows.append([k, *found[k], *arrows])
    with figure("10", "Only k₁ in the reward has the gradient of the KL divergence", 1) as (axis,):
        names = [name for name in found if "in the" in name]
        for i, name in enumerate(names):
            x, arrow = found[name][0], dict(arrowstyle="-|>", color=COLOURS[i // 3], lw=2)
            if abs(x) < 0.01:
                axis.plot(0, i, "o", color=COLOURS[i // 3])
            else:
                axis.annotate("", (x, i), (0, i), arrowprops=arrow)
        axis.axvline(1, color="grey", linestyle=":", label="true gradient")
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set(yticks=range(len(names)), yticklabels=names, xlim=(-0.4, 1.4))
        axis.set(xlabel="part of the expected gradient along the true one", ylim=(8.5, -0.5))
    return rows


def main() -> None:
    claims = {name[6:]: f for name, f in globals().items() if name.startswith("claim_")}
    torch.set_num_threads(1)
    gym.logger.min_level = gym.logger.ERROR
    page = ROOT / "claims.md"
    for name in sys.argv[1:] or claims:
        head, *rows = [[*map(said, row)] for row in claims[name]()]
        text = report.table(head, rows) + "\n"
        print(f"{name}\n{text}", flush=True)
        pattern = rf"(?<=<!-- {name} -->\n)(.+\n)*"
        page.write_text(report.replaced(pattern, text, page.read_text()))


if __name__ == "__main__":
    main()
