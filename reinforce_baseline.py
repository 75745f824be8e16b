"""REINFORCE with a learned baseline, also called the vanilla policy gradient; Williams 1992.

Changed from reinforce.py: a Critic, whose value is subtracted from the returns; it is fitted after
the policy's step. norm_adv replaces norm_returns.

Idea
    What counts is not whether an episode went well, but whether it went better than expected from
    that state. A second network V_w learns what to expect, and is subtracted from the return. The
    gradient stays the same in expectation, and much of its noise is gone.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [CS-5.1/5.2]  J = E[V(s₀)]; V^π(s) = Σ_a π(a|s) Q^π(s,a)
    [AC-02a]   π_θ(a|s) = softmax(f_θ(s))_a   for discrete actions
    [AC-02b]   a ∼ N(μ_θ(s), σ²I)   for Box actions; here σ is a vector, the same in all states
    [CS-6a]    G_t = Σ_{k=t..T} γ^{k−t} r_k
    [CS-5.4a]  ∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]
    [CS-9e]    b(s_t) = V^π(s_t)   V_w is fitted to whole returns G_t; in a2c.py it bootstraps
    [CS-9f]    A = Q − V ≈ G_t − V(s_t)
    [CS-9a]    ĝ_t = ∇log π (G_t − b(s_t))
    [CS-9g]    ∇J = E[∇log π A]
    [CS-4a]    θ ← θ + α ∇J(θ)   here by a step of Adam
    [X-VF]     L_VF = (V_w(s_t) − V_t^target)²   with V_t^target = G_t

Why the baseline adds no bias
    [CS-9b]    E_a[∇log π(a|s) b(s)] = 0: it is b(s) Σ_a π ∇log π = b(s) ∇Σ_a π = b(s) ∇1 = 0.
    This holds only if b(s) does not depend on the action: V_w is evaluated before it is fitted to
    that action's return.

Algorithm [CS-6alg]: that of reinforce.py, with the baseline in line 6, and line 8 new
    1. initialise the policy θ and the critic w
    2. for each episode:
    3.     sample a trajectory τ by following π_θ
    4.     for each of its steps t:
    5.         the return G_t
    6.         the gradient estimate ĝ_t, with the weight G_t − b(s_t)
    7.     θ ← θ + α Σ_t ĝ_t
    8.     fit V_w to the returns, by steps of Adam down L_VF
Line 6 drops the factor γ^t, and line 7 divides by the constant batch_size, as in reinforce.py.

Not in the text [impl]: as in reinforce.py, and
    weights G − b standardised over the batch; their mean contains each action's own return: the
        gradient shrinks by up to 1 / (2 · episodes)                    OpenAI Spinning Up, vpg
    values standardised by running statistics, L_VF in their units      PopArt, van Hasselt 2016

Run: python reinforce_baseline.py --env-id HalfCheetah-v4
    after 1,000,000 steps: return 850 ± 282 (10 seeds; see benchmarks.md)
"""

import json
import math
import os
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from tqdm import tqdm


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps; 0 with --resume only evaluates
    seed: int = 1  # seed of the weights, the actions and the environment
    # Algorithm
    learning_rate: float = 2e-3  # α, learning rate of Adam [CS-4a]
    batch_size: int = 2048  # play whole episodes until they have this many steps, then update
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    norm_adv: bool = True  # standardise the weights G − b of each batch
    critic_learning_rate: float = 1e-3  # learning rate of the critic's Adam
    critic_epochs: int = 10  # epochs over each batch in the critic's fit [CS-9e]
    critic_batch_size: int = 64  # steps in each minibatch of that fit
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
def discounted_returns(rewards, gamma) -> Tensor:
    """G_t = Σ_{k=t..T} γ^{k−t} r_k  [CS-6a], by G_t = r_t + γ G_{t+1}; one episode, (T,) → (T,)."""
    returns = rewards * 1.0  # a copy, of floats
    for t in reversed(range(len(rewards) - 1)):
        returns[t] += gamma * returns[t + 1]  # [CS-6a]
    return returns


def policy_gradient_loss(log_probs, weights) -> Tensor:
    """∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]  [CS-5.4a]

    Both (B,) → scalar. Its gradient estimates −∇J up to a factor; the weights estimate Q or A.
    """
    assert log_probs.shape == weights.shape
    # Ascent on the objective = descent on its negative.
    return -(log_probs * weights).mean()  # [CS-5.4a]


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────
def play_episode(env: gym.Env, actor: Actor) -> tuple:
    """One episode: observations (T, O), actions (T, ...), rewards (T,), and its statistics."""
    device = next(actor.parameters()).device
    steps, done = [], False
    obs, _ = env.reset()
    while not done:
        with torch.inference_mode():
            action = actor(torch.as_tensor(obs, device=device)).sample()
        next_obs, reward, terminated, truncated, info = env.step(actor.to_env(action))
        steps.append((obs, action.numpy(force=True), np.float32(reward)))
        obs, done = next_obs, terminated or truncated
    arrays = (torch.as_tensor(np.stack(x), device=device) for x in zip(*steps))
    return *arrays, info["statistics"]


def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    env = make_env(args.env_id)
    env.reset(seed=10**6 * args.seed)  # once; later resets draw from env's generator

    # 1. Initialise the policy θ and the critic w.
    actor = Actor(env.observation_space, env.action_space).to(device)
    critic = Critic(env.observation_space).to(device)
    optimizer = torch.optim.Adam(actor.parameters(), args.learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(critic.parameters(), args.critic_learning_rate, fused=True)

    networks = dict(actor=actor, critic=critic)
    run = Run(args, env, **networks, optimizer=optimizer, critic_optimizer=critic_optimizer)
    optimizer.param_groups[0]["lr"] = args.learning_rate  # not the one in the checkpoint
    critic_optimizer.param_groups[0]["lr"] = args.critic_learning_rate
    step = run.step
    while step < args.total_timesteps:
        # 2. For each episode; [impl] several of them before line 7.
        episodes, first_step = [], step
        while step - first_step < args.batch_size:
            # 3. Sample a trajectory τ by following π_θ.
            observations, actions, rewards, episode = play_episode(env, actor)
            step += len(rewards)
            run.log("episodes", step, episode_return=episode["r"], length=episode["l"])

            # 4. For each of its steps t:
            # 5. the return G_t.
            returns = discounted_returns(rewards, args.gamma)  # (T,)
            episodes.append((observations, actions, returns))

        # 6. The gradient estimate ĝ_t, for the B steps of all episodes at once.
        observations, actions, returns = map(torch.cat, zip(*episodes))  # (B, ...)
        with torch.no_grad():  # the baseline is a constant: no gradient flows through it
            baseline = critic(observations)  # (B,) [CS-9e]
        weights = returns - baseline  # [CS-9a] [CS-9f]
        explained_variance = 1 - weights.var(correction=0) / returns.var(correction=0).clamp(1e-8)
        if args.norm_adv and len(weights) > 1:  # the std of a single number is NaN
            weights = (weights - weights.mean()) / (weights.std() + 1e-8)
        dist = actor(observations)
        loss = policy_gradient_loss(dist.log_prob(actions), weights)  # [CS-9g]
        loss = loss * len(weights) / args.batch_size  # the sum over batch_size, see the header

        # 7. θ ← θ + α Σ_t ĝ_t.
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # [CS-4a]

        # 8. Fit V_w to the returns, by steps of Adam down L_VF. [impl] Update the statistics now:
        # the actor has taken its step, and the critic's fit adapts to them.
        actor.obs_norm.update(observations)
        critic.obs_norm.update(observations)
        critic.update_return_norm(returns)
        critic_losses = []
        for _ in range(args.critic_epochs):
            order = torch.randperm(len(returns), device=device)
            for rows in order.split(args.critic_batch_size):
                value_errors = (critic(observations[rows]) - returns[rows]) / critic.return_norm.std
                critic_loss = (value_errors**2).mean()  # [X-VF]
                critic_optimizer.zero_grad()
                critic_loss.backward()
                critic_optimizer.step()
                critic_losses.append(critic_loss.detach())
        metrics = dict(policy_loss=loss.detach(), value_loss=torch.stack(critic_losses).mean())
        metrics |= dict(entropy=dist.entropy().mean().detach())
        run.log("updates", step, **metrics, explained_variance=explained_variance)
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
