"""Trust Region Policy Optimization (TRPO); Schulman et al. 2015.

Changed from a2c.py: gae replaces n_step_advantages, and a step within a KL radius that of RMSprop;
the critic has an optimizer and a loop of its own; no entropy bonus, annealing and torchrun.

Idea
    A policy gradient is only valid near the policy that collected the data: a large step can ruin
    the policy, and with it the next rollout. TRPO measures a step by the mean KL divergence from
    the old policy, not by the distance in θ. It takes the best step for a linear model of the
    objective and a quadratic one of the KL, and a line search checks it on the real functions.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [AC-02a]   π_θ(a|s) = softmax(f_θ(s))_a   for discrete actions
    [AC-02b]   a ∼ N(μ_θ(s), σ²I)   for Box actions; here σ is a vector, the same in all states
    [CS-10b]   δ_t = r_t + γ V(s_{t+1}) − V(s_t)   with V(s_{t+1}) = 0 if s_{t+1} is terminal
    [X-GAE]    Â_t = Σ_l (γλ)^l δ_{t+l}
    [AC-08b]   r_t(θ) = π_θ(a_t|s_t) / π_old(a_t|s_t)   the probability ratio, not the reward
    [AC-08a]   max_θ E[π_θ/π_old · A] subject to E[KL(π_old ‖ π_θ)] ≤ δ
    [X-FVP]    F v = ∇((∇E[KL])ᵀ v)   F, the Fisher matrix, is the Hessian of E[KL] at θ_old
    [X-CG]     solve F x = g by conjugate gradient   with g = ∇E[π_θ/π_old · A] at θ_old
    [X-STEP]   θ' = θ + √(2δ / xᵀFx) · x   so that ½ ΔθᵀFΔθ = δ, the radius; it is not an error δ_t
    [X-LS]     shrink until KL ≤ δ and the surrogate improves, else keep θ_old
    [X-VF]     L_VF = (V_w(s_t) − V_t^target)²   with V_t^target = Â_t + V(s_t)

Algorithm
    1. initialise the policy θ and the critic w
    2. run π_old = π_θ for T steps in each of N environments
    3. for all T·N samples: advantages Â by GAE, log π_old(a|s) and the value targets
    4. the gradient g of the surrogate at θ_old, and x = F⁻¹g
    5. the full step √(2δ / xᵀFx) · x, shrunk until it keeps the constraint and improves
    6. fit V_w to the value targets, by steps of Adam down L_VF
    7. discard the rollout and go to 2
The text computes F, a d × d matrix for d parameters. Conjugate gradient only needs products F v,
and each is the gradient of a scalar, (∇E[KL])ᵀ v.

Not in the text [impl]
    F + damping · I in place of F, because the KL is flat in some directions; advantages
        standardised over the batch; V_w fitted by Adam                 OpenAI Baselines, trpo_mpi
    observations standardised by running statistics, clipped to ±10     Andrychowicz 2021, 3.3
    values standardised by running statistics, L_VF in their units      PopArt, van Hasselt 2016
    orthogonal weights, the policy's last layer scaled by 0.01          Andrychowicz 2021, 3.2
    initial σ = e^−0.5, in units of half the action range               tianshou, examples/mujoco
    bootstrap from V(s') at time limits                                 Pardo 2018

Run: python trpo.py --env-id HalfCheetah-v4
    after 1,000,000 steps: return 5,179 ± 691 (10 seeds; see benchmarks.md)
"""

import json
import math
import os
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps; 0 with --resume only evaluates
    seed: int = 1  # seed of the weights, the actions and the environments
    # Algorithm
    num_envs: int = 64  # N, environments
    num_steps: int = 32  # T, steps in each environment per rollout
    gamma: float = 0.995  # γ, discount factor [CS-3a]
    gae_lambda: float = 0.97  # λ, decay of the weight of later TD errors [X-GAE]
    norm_adv: bool = True  # standardise the advantages of each rollout
    max_kl: float = 0.02  # δ, radius of the trust region, in nats [AC-08a]
    cg_iterations: int = 10  # iterations of conjugate gradient [X-CG]
    cg_damping: float = 0.1  # F + damping · I replaces F [X-FVP]
    line_search_steps: int = 10  # step lengths to try, each 0.8 times the one before [X-LS]
    critic_learning_rate: float = 1e-3  # learning rate of the critic's Adam
    critic_epochs: int = 5  # epochs over each rollout in the critic's fit [X-VF]
    critic_batch_size: int = 64  # samples in each minibatch of that fit
    # Run
    cuda: bool = False  # use the GPU; networks this small are usually faster on one CPU core
    num_threads: int = 1  # PyTorch's CPU threads
    track: bool = False  # also log to Weights & Biases, set up by WANDB_PROJECT, WANDB_MODE, ...
    capture_video: bool = False  # record the evaluation episodes as MP4 files
    eval_episodes: int = 10  # episodes of the deterministic evaluation at the end
    save_every: float = 60.0  # seconds between checkpoints, saved at ends of episodes or rollouts
    resume: Path | None = None  # continue the run in this folder; flags given override its own


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────
class RunningNorm(nn.Module):
    """Standardises by the mean and std of all samples that `update` has seen [impl]."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).clamp(-10, 10)

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Merges the mean and std of a batch (B, *shape) with those of all samples before."""
        self.count += len(batch)
        share = (len(batch) / self.count).float()  # the batch's share of all samples
        mean = batch.mean(0)
        variance = ((batch - mean) ** 2).mean(0)
        variance = share * variance + (1 - share) * (self.std**2 + share * (mean - self.mean) ** 2)
        self.mean.lerp_(mean, share)
        self.std.copy_(variance.clamp(min=1e-8).sqrt())


def mlp(inputs: int, outputs: int, output_gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh units; orthogonal weights, zero biases [impl]."""
    layers = [nn.Linear(inputs, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
    for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), output_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Actor(nn.Module):
    """π_θ(a|s): a softmax for each entry of a discrete action, a diagonal Gaussian for a Box.

    [impl] The Gaussian is in units of half the action range, or of 1 where a bound is infinite.
    log_prob is that of the unclipped sample; only `to_env` clips.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.space, self.discrete = action_space, not isinstance(action_space, gym.spaces.Box)
        if isinstance(action_space, gym.spaces.Discrete):
            n = action_space.n
        elif isinstance(action_space, gym.spaces.MultiDiscrete):
            n = action_space.nvec
        elif isinstance(action_space, gym.spaces.MultiBinary):
            n = np.full(action_space.shape, 2)
        elif self.discrete or action_space.dtype.kind != "f":
            raise gym.error.Error(f"cannot choose actions from {action_space}")
        if self.discrete:  # one row of logits per entry, padded to the longest; -1e9 masks padding
            padding = torch.arange(np.max(n)) >= torch.as_tensor(n).unsqueeze(-1)
            self.register_buffer("mask", torch.where(padding, -1e9, 0.0))  # (*shape, max(n))
            outputs = self.mask.numel()
        else:
            low, high = action_space.low, action_space.high
            bounded = np.isfinite(high - low)
            self.unit = np.where(bounded, (high - low) / 2, 1)
            self.middle = np.where(bounded, low + self.unit, np.clip(0, low, high))
            self.log_std = nn.Parameter(torch.full(low.shape, -0.5))  # log σ, the same for all s
            outputs = low.size
        self.obs_norm = RunningNorm(*observation_space.shape)
        self.net = mlp(*observation_space.shape, outputs, output_gain=0.01)

    def forward(self, obs: Tensor) -> Distribution:
        """obs (..., O) → the distribution of actions; its log_prob and entropy are (...,)."""
        output = self.net(self.obs_norm(obs))  # (..., outputs)
        if self.discrete:
            logits = output.reshape(output.shape[:-1] + self.mask.shape) + self.mask
            dist = Categorical(logits=logits, validate_args=False)  # [AC-02a]
        else:
            mean = output.reshape(output.shape[:-1] + self.log_std.shape)
            dist = Normal(mean, self.log_std.exp(), validate_args=False)  # [AC-02b]
        # Sum log-probabilities over action dimensions: (B, A) → (B,).
        return Independent(dist, len(self.space.shape), validate_args=False)

    def to_env(self, action: Tensor) -> np.ndarray:
        """A sample of the distribution → the action that env.step expects."""
        action = action.numpy(force=True)
        if self.discrete:
            action = action + getattr(self.space, "start", 0)
        else:
            action = (self.middle + self.unit * action).clip(self.space.low, self.space.high)
        return action.astype(self.space.dtype)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """obs (..., O) → the most probable action, as env.step expects it."""
        return torch.as_tensor(self.to_env(self(obs).mode))


class Critic(nn.Module):
    """V_w(s), in units of the rewards; the network predicts standardised values [impl]."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__()
        self.obs_norm, self.return_norm = RunningNorm(*observation_space.shape), RunningNorm()
        self.net = mlp(*observation_space.shape, 1, output_gain=1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """obs (..., O) → values (...,)."""
        output = self.net(self.obs_norm(obs)).squeeze(-1)
        return self.return_norm.mean + self.return_norm.std * output

    @torch.no_grad()
    def update_return_norm(self, targets: Tensor) -> None:
        """PopArt [impl]: updates the statistics, and rescales the last layer to keep V_w."""
        norm, last = self.return_norm, self.net[-1]
        mean, std, first = norm.mean.clone(), norm.std.clone(), norm.count == 0
        norm.update(targets)
        if not first:  # the first time, there is no V_w worth keeping
            last.weight.mul_(std / norm.std)
            last.bias.copy_((mean + std * last.bias - norm.mean) / norm.std)


# ── Equations ─────────────────────────────────────────────────────────────────────────────────────
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


def surrogate(log_probs, old_log_probs, advantages) -> Tensor:
    """max_θ E[π_θ/π_old · A] subject to E[KL(π_old ‖ π_θ)] ≤ δ  [AC-08a]

    All (B,) → scalar, the expectation that is to be maximised.
    """
    assert log_probs.shape == old_log_probs.shape == advantages.shape
    ratio = (log_probs - old_log_probs).exp()  # [AC-08b]
    return (ratio * advantages).mean()  # [AC-08a]


def mean_kl(old_dist: Distribution, new_dist: Distribution) -> Tensor:
    """E[KL(π_old ‖ π_θ)], the mean over the states of the batch, which the constraint limits."""
    return kl_divergence(old_dist, new_dist).mean()  # [AC-08a]


def fisher_vector_product(kl_gradient, parameters, v, damping) -> Tensor:
    """F v = ∇((∇E[KL])ᵀ v)  [X-FVP], plus damping · v; v (d,) → (d,).

    kl_gradient is ∇E[KL] (d,) at θ_old with its graph: it is 0 there, but its derivative is not.
    """
    product = torch.autograd.grad(kl_gradient @ v, parameters, retain_graph=True)  # [X-FVP]
    return parameters_to_vector(product) + damping * v


def conjugate_gradient(matvec, b, iterations) -> Tensor:
    """solve F x = g by conjugate gradient  [X-CG]

    matvec maps v (d,) to F v (d,), for a symmetric positive definite F; b is g (d,) → x (d,).
    """
    # x maximises bᵀx − ½ xᵀFx; the residual b − F x is the gradient of that.
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    squares = residual @ residual
    for _ in range(iterations):
        if squares <= 1e-10 * (b @ b):
            break
        product = matvec(direction)
        length = squares / (direction @ product)  # to the maximum along this direction
        x = x + length * direction  # [X-CG]
        residual = residual - length * product
        new_squares = residual @ residual
        # The next direction is conjugate to the earlier ones, dᵀFd' = 0: x stays best along them.
        direction = residual + (new_squares / squares) * direction
        squares = new_squares
    return x


def full_step(x, fisher_x, max_kl) -> Tensor:
    """θ' = θ + √(2δ / xᵀFx) · x  [X-STEP]; x and F x (d,) → the step θ' − θ (d,)."""
    curvature = (x @ fisher_x).clamp(min=1e-12)  # rounding may leave 0 or less
    return (2 * max_kl / curvature).sqrt() * x  # [X-STEP]


@torch.no_grad()
def line_search(parameters, step, evaluate_policy, max_kl, attempts) -> tuple:
    """shrink until KL ≤ δ and the surrogate improves, else keep θ_old  [X-LS]

    Moves the parameters θ by the accepted fraction of the step (d,). evaluate_policy() returns the
    surrogate and E[KL] at the present parameters.
    Returns the fraction of the step that was taken, 0 if none, and the surrogate and E[KL] there.
    """
    old_theta = parameters_to_vector(parameters)
    old_surrogate, old_kl = evaluate_policy()
    for attempt in range(attempts):
        fraction = 0.8**attempt
        vector_to_parameters(old_theta + fraction * step, parameters)
        new_surrogate, kl = evaluate_policy()
        if kl <= max_kl and new_surrogate > old_surrogate:  # [X-LS] [AC-08a]; NaN fails both
            return fraction, new_surrogate, kl
    vector_to_parameters(old_theta, parameters)
    return 0.0, old_surrogate, old_kl


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────
def rollout(envs: list[gym.Env], obs: np.ndarray, actor: Actor, T: int) -> tuple:
    """Acts for T steps in each of N environments, starting from obs (N, O).

    Returns the last obs, the statistics of the episodes that ended, and (T, N, ...): observations,
    actions, rewards, next_observations, terminations, truncations.
    """
    device = next(actor.parameters()).device
    steps, episodes = [], []
    for _ in range(T):
        with torch.inference_mode():
            action = actor(torch.as_tensor(obs, device=device)).sample()  # (N, ...)
        transitions = zip(*(env.step(a) for env, a in zip(envs, actor.to_env(action))))
        next_obs, reward, terminated, truncated, infos = map(np.array, transitions)
        reward = reward.astype(np.float32)
        steps.append((obs, action.numpy(force=True), reward, next_obs, terminated, truncated))
        obs = next_obs.copy()
        for n in np.flatnonzero(terminated | truncated):
            # next_obs is the true successor, even when the env has just been reset.
            obs[n], _ = envs[n].reset()
            episodes.append(infos[n]["statistics"])
    return obs, episodes, *(torch.as_tensor(np.stack(x), device=device) for x in zip(*steps))


def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder."""
    T, N = args.num_steps, args.num_envs
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    envs = [make_env(args.env_id) for _ in range(N)]

    # 1. Initialise the policy θ and the critic w.
    actor = Actor(envs[0].observation_space, envs[0].action_space).to(device)
    critic = Critic(envs[0].observation_space).to(device)
    theta = [*actor.parameters()]
    critic_optimizer = torch.optim.Adam(critic.parameters(), args.critic_learning_rate, fused=True)

    run = Run(args, actor=actor, critic=critic, critic_optimizer=critic_optimizer)
    critic_optimizer.param_groups[0]["lr"] = args.critic_learning_rate  # not the checkpoint's
    step = run.step
    seed = 10**6 * args.seed + step  # a resumed run has other episodes
    obs = np.stack([env.reset(seed=seed + n)[0] for n, env in enumerate(envs)])  # (N, O)
    in_lockstep = list(range(N))
    while step < args.total_timesteps:
        # 2. Run π_old = π_θ for T steps in each of N environments.
        obs, episodes, *samples = rollout(envs, obs, actor, T)
        observations, actions, rewards, next_observations, *ends = samples  # (T, N, ...)
        step += T * N

        # 3. For all T·N samples: advantages Â by GAE, log π_old(a|s) and the value targets.
        # The target is a constant: no gradient flows through it.
        with torch.no_grad():
            values, next_values = critic(observations), critic(next_observations)  # (T, N)
            advantages = gae(rewards, values, next_values, *ends, args.gamma, args.gae_lambda)
            targets = advantages + values
        unexplained = advantages.var(correction=0) / targets.var(correction=0).clamp(1e-8)
        samples = observations, actions, advantages, targets
        observations, actions, advantages, targets = (x.flatten(0, 1) for x in samples)  # (B, ...)
        if args.norm_adv and len(advantages) > 1:  # the std of a single number is NaN
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        with torch.no_grad():
            old_dist = actor(observations)
            old_log_probs = old_dist.log_prob(actions)  # (B,)

        # 4. The gradient g of the surrogate at θ_old, and x = F⁻¹g.
        dist = actor(observations)
        objective = surrogate(dist.log_prob(actions), old_log_probs, advantages)
        g = parameters_to_vector(torch.autograd.grad(objective, theta, retain_graph=True))  # (d,)
        kl_gradient = torch.autograd.grad(mean_kl(old_dist, dist), theta, create_graph=True)
        kl_gradient = parameters_to_vector(kl_gradient)  # (d,)
        fisher = partial(fisher_vector_product, kl_gradient, theta, damping=args.cg_damping)
        x = conjugate_gradient(fisher, g, args.cg_iterations)  # (d,)

        # 5. The full step, shrunk until it keeps the constraint and improves.
        def evaluate_policy() -> tuple[Tensor, Tensor]:
            dist = actor(observations)
            log_probs = dist.log_prob(actions)
            return surrogate(log_probs, old_log_probs, advantages), mean_kl(old_dist, dist)

        theta_step = full_step(x, fisher(x), args.max_kl)  # (d,)
        search = theta, theta_step, evaluate_policy, args.max_kl, args.line_search_steps
        fraction, new_surrogate, kl = line_search(*search)

        # 6. Fit V_w to the value targets, by steps of Adam down L_VF. [impl] Update the critic's
        # statistics first; the fit adapts to them.
        critic.obs_norm.update(observations)
        critic.update_return_norm(targets)
        critic_losses = []
        for _ in range(args.critic_epochs):
            order = torch.randperm(T * N, device=device)
            for rows in order.split(args.critic_batch_size):
                value_errors = (critic(observations[rows]) - targets[rows]) / critic.return_norm.std
                critic_loss = (value_errors**2).mean()  # [X-VF]
                critic_optimizer.zero_grad()
                critic_loss.backward()
                critic_optimizer.step()
                critic_losses.append(critic_loss.detach())

        # 7. Discard the rollout. [impl] Update the actor's statistics only now: if earlier, π_old
        # would not be the policy that acted.
        actor.obs_norm.update(observations)
        # [impl] Reset one environment per rollout, so that their episodes end at different times.
        if in_lockstep:
            n = in_lockstep.pop()
            obs[n], _ = envs[n].reset()
        for episode in episodes:
            run.log("episodes", step, episode_return=episode["r"], length=episode["l"])
        metrics = dict(surrogate=new_surrogate, kl=kl, step_fraction=fraction)
        metrics |= dict(value_loss=torch.stack(critic_losses).mean())
        metrics |= dict(entropy=old_dist.entropy().mean(), explained_variance=1 - unexplained)
        run.log("updates", step, **metrics)
        run.save(step)
    return run.finish(step, actor)


# ── Plumbing: the same text in every script ───────────────────────────────────────────────────────
def make_env(env_id: str, video_folder: Path | None = None) -> gym.Env:
    """One environment with flat float32 observations; it records its episodes in video_folder."""
    env = gym.make(env_id, **({"render_mode": "rgb_array"} if video_folder else {}))
    if not env.observation_space.is_np_flattenable:
        raise gym.error.Error(f"cannot flatten the observations: {env.observation_space}")
    if video_folder:
        env.reset(), env.render()  # fail now, not after training, where this is impossible
        env = gym.wrappers.RecordVideo(env, str(video_folder), episode_trigger=lambda _: True)
    env = gym.wrappers.TimeLimit(env, 100_000)  # for an environment that has no limit of its own
    env = gym.wrappers.TransformReward(env, lambda reward: float(np.asarray(reward).item()))
    env = gym.wrappers.RecordEpisodeStatistics(env, stats_key="statistics")
    return gym.wrappers.TransformObservation(gym.wrappers.FlattenObservation(env), np.float32, None)


def evaluate(actor: nn.Module, env: gym.Env, episodes: int, seed: int) -> list[float]:
    """The returns of some episodes with the actor's deterministic actions."""
    returns, device = [], next(actor.parameters()).device
    for episode in tqdm(range(episodes), "evaluation", leave=False, disable=None):
        (obs, _), done = env.reset(seed=None if episode else seed), False
        while not done:
            action = actor.mode(torch.as_tensor(obs, device=device)).numpy()[()]  # 0-d → number
            obs, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
        returns.append(float(info["statistics"]["r"]))
    env.close()  # completes the last video
    return returns


class Run:
    """A run's folder: args.json, episodes.csv, updates.csv, checkpoint.pt, summary.json.

    A kill costs `save_every` seconds and the present episode or rollout: checkpoint.pt is replaced
    as a whole, and --resume cuts the CSV files back to their sizes then. It holds `state` and the
    random generators of PyTorch and, if given, of `env`: then, on the CPU, a run that is resumed at
    the end of an episode is the same run.
    """

    def __init__(self, args: Args, env: gym.Env | None = None, **state) -> None:
        self.args, self.env, self.state, self.wandb = args, env, state, None
        self.step, self.returns = 0, deque(maxlen=100)
        self.start = self.saved_at = time.time()
        script = Path(__file__).stem
        name = f"{args.env_id}__{script}__{args.seed}__{time.time_ns()}"
        self.folder = args.resume or Path("runs", name.replace("/", "-").replace(":", "-"))
        self.eval_env = make_env(args.env_id, args.capture_video and self.folder / "videos")
        if args.resume:
            checkpoint = torch.load(self.folder / "checkpoint.pt", "cpu", weights_only=True)
            for part, saved in checkpoint["state"].items():
                state[part].load_state_dict(saved)
            torch.set_rng_state(checkpoint["random"])
            if env:
                env.unwrapped.np_random.bit_generator.state = checkpoint["env_random"]
            self.step, self.start = checkpoint["step"], time.time() - checkpoint["seconds"]
            self.returns.extend(checkpoint["returns"])
            if self.step < args.total_timesteps:  # else: evaluation only
                for name in ("episodes.csv", "updates.csv"):
                    open(self.folder / name, "a").truncate(checkpoint["csv_sizes"].get(name, 0))
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.save(0, now=True)
        if self.step < args.total_timesteps:  # else: evaluation only
            content = {"script": script, "args": asdict(args) | {"resume": None}}
            content["versions"] = {x.__name__: x.__version__ for x in (torch, gym, np)}
            (self.folder / "args.json").write_text(json.dumps(content, indent=2))
        if args.track and self.step < args.total_timesteps:
            import wandb

            names = dict(id=self.folder.resolve().name, dir=self.folder, resume="allow")
            self.wandb = wandb.init(config=asdict(args), **names)
            self.wandb.define_metric("*", step_metric="step")
        print(f"{script}.py on {args.env_id}, seed {args.seed}, saved in {self.folder}")
        total = max(args.total_timesteps, self.step)
        self.bar = tqdm(total=total, initial=self.step, unit_scale=True, mininterval=1)
        Run.current = self  # for the error message at the end of this file

    def log(self, table: str, step: int, **metrics: Tensor | float) -> None:
        """Adds a row to episodes.csv or updates.csv, and to W&B; raises on a NaN or an infinity."""
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
        if table == "episodes":
            self.returns.append(row["episode_return"])
            self.bar.set_postfix_str(f"return {np.mean(self.returns):,.1f}", refresh=False)
        self.bar.update(min(step, self.bar.total) - self.bar.n)

    def save(self, step: int, now: bool = False) -> None:
        """Replaces checkpoint.pt if it is more than `save_every` seconds old, or `now`."""
        if not now and time.time() - self.saved_at < self.args.save_every:
            return
        checkpoint = dict(step=step, seconds=time.time() - self.start, returns=[*self.returns])
        checkpoint["state"] = {name: part.state_dict() for name, part in self.state.items()}
        checkpoint["csv_sizes"] = {x.name: x.stat().st_size for x in self.folder.glob("*.csv")}
        checkpoint["random"] = torch.get_rng_state()
        checkpoint["env_random"] = self.env and self.env.unwrapped.np_random.bit_generator.state
        try:
            torch.save(checkpoint, self.folder / "checkpoint.tmp")
        except RuntimeError as error:  # what torch.save raises where the disk is full
            raise OSError(f"cannot write a checkpoint to {self.folder}; disk full?") from error
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        self.saved_at = time.time()

    def finish(self, step: int, actor: nn.Module) -> Path:
        """Saves and evaluates; writes and prints the summary; returns the run's folder."""
        self.bar.close()
        if step > self.step:
            self.save(step, now=True)
        summary = {"step": step, "seconds": round(time.time() - self.start, 3)}
        seed = 10**6 * self.args.seed + 999_999  # a seed that training does not use
        returns = evaluate(actor, self.eval_env, self.args.eval_episodes, seed)
        means = dict(training_return=self.returns, evaluation_return=returns)
        summary |= {name: float(np.mean(values)) for name, values in means.items() if values}
        print(", ".join(f"{name} {round(x, 1):,}" for name, x in summary.items()))
        if self.args.total_timesteps > 0:  # else: evaluation only, which keeps training's summary
            content = summary | {"evaluation_returns": returns}
            (self.folder / "summary.json").write_text(json.dumps(content, indent=2))
        if self.wandb:
            self.wandb.summary.update(summary)
            self.wandb.finish()
        return self.folder


if __name__ == "__main__":
    sys.path.append("")  # finds module:Id in the current folder as well
    args = tyro.cli(Args, description=__doc__.split("\n")[0])
    try:
        if args.resume:  # the run's own arguments become the defaults
            stored = json.loads((args.resume / "args.json").read_text())
            if stored["script"] != Path(__file__).stem:
                raise gym.error.Error(f"{args.resume} is a run of {stored['script']}.py")
            args = tyro.cli(Args, default=Args(**stored["args"]))
        train(args)
    except BaseException as error:  # its message is to be the last line on the screen
        if run := getattr(Run, "current", None):
            run.bar.close()
            print(f"To continue from the last checkpoint: --resume {run.folder}")
        users = KeyboardInterrupt, gym.error.Error, FloatingPointError, OSError, ImportError
        if isinstance(error, users):
            sys.exit(f"{type(error).__name__}: {error}".rstrip(": "))
        raise  # with a traceback, because it may be a bug
