"""Steps per second of the scripts beside Stable-Baselines3's, at equal settings, in one run.

    pip install '.[benchmarks]' && python benchmarks/speed.py --scripts ppo a2c trpo

Both train on the same environment with the same number of environments, rollout length, minibatch
size, epochs, networks (on-policy two of 64-64 tanh, off-policy 256-256 ReLU, one update for each
step) and one PyTorch thread. They take turns, so that whatever
else the machine does hits both alike; the first part of each turn is not counted. The scripts do
more in that time: they standardise observations and returns, ppo.py recomputes its advantages in each
epoch, and all write their logs. With --vec-normalize SB3 normalises too.
"""

import argparse
import contextlib
import csv
import importlib
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.filterwarnings("ignore")

import sb3_contrib  # noqa: E402
import stable_baselines3  # noqa: E402
import torch  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

# script: (SB3's class, steps of a rollout over all environments or None for 5 in each,
#          our arguments, SB3's arguments, updates before the clock starts, updates that count)
PAIRS = {
    "ppo": (
        stable_baselines3.PPO, 2048, {"num_minibatches": 32}, {"batch_size": 64, "n_epochs": 10}, 2, 6,
    ),
    "a2c": (stable_baselines3.A2C, None, {}, {}, 100, 400),
    "trpo": (
        sb3_contrib.TRPO, 2048, {"cg_iterations": 15, "critic_batch_size": 128, "critic_epochs": 10},
        {"batch_size": 128, "cg_max_steps": 15, "n_critic_updates": 10}, 2, 6,
    ),
}  # fmt: skip

# One environment, HalfCheetah's episodes of 1,000 steps: from the first one's end to the third's.
OFF_POLICY = {
    "ddpg": stable_baselines3.DDPG,
    "td3": stable_baselines3.TD3,
    "sac": stable_baselines3.SAC,
}


def ours(script: str, env_id: str, num_envs: int, compiled: bool) -> float:
    """Steps per second of our script, from its own log."""
    if script in OFF_POLICY:
        module = importlib.import_module(script)
        args = module.Args(
            env_id=env_id, total_timesteps=3000, learning_starts=100, eval_episodes=0,
            compile=compiled, checkpoint_every=10**9,
        )  # fmt: skip
        with open(module.train(args) / "updates.csv") as file:
            seconds = {int(row["step"]): float(row["seconds"]) for row in csv.DictReader(file)}
        return 2000 / (seconds[3000] - seconds[1000])
    _, rollout, settings, _, warm_up, updates = PAIRS[script]
    module = importlib.import_module(script)
    num_steps = rollout // num_envs if rollout else 5
    args = module.Args(
        env_id=env_id, num_envs=num_envs, num_steps=num_steps, eval_episodes=0, compile=compiled,
        total_timesteps=(warm_up + updates) * num_steps * num_envs, checkpoint_every=10**9, **settings,
    )  # fmt: skip
    folder = module.train(args)
    with open(folder / "updates.csv") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return updates * num_steps * num_envs / (seconds[-1] - seconds[warm_up - 1])


def theirs(script: str, env_id: str, num_envs: int, normalize: bool) -> float:
    """Steps per second of SB3's counterpart."""
    if script in OFF_POLICY:
        model = OFF_POLICY[script](
            "MlpPolicy", make_vec_env(env_id, 1, seed=1), batch_size=256, learning_starts=100,
            train_freq=1, gradient_steps=1, policy_kwargs={"net_arch": [256, 256]}, device="cpu",
        )  # fmt: skip
        model.learn(1000)
        start = time.perf_counter()
        model.learn(2000, reset_num_timesteps=False)
        return 2000 / (time.perf_counter() - start)
    peer, rollout, _, settings, warm_up, updates = PAIRS[script]
    envs = make_vec_env(env_id, num_envs, seed=1)
    if normalize:
        envs = VecNormalize(envs)
    num_steps = rollout // num_envs if rollout else 5
    model = peer("MlpPolicy", envs, n_steps=num_steps, device="cpu", seed=1, **settings)
    model.learn(warm_up * num_steps * num_envs)
    start, steps = time.perf_counter(), updates * num_steps * num_envs
    model.learn(steps, reset_num_timesteps=False)
    return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--scripts", nargs="+", default=[*PAIRS, *OFF_POLICY], choices=[*PAIRS, *OFF_POLICY]
    )
    parser.add_argument("--env-id", default="HalfCheetah-v4")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vec-normalize", action="store_true", help="SB3 with VecNormalize")
    options = parser.parse_args()
    torch.set_num_threads(1)
    packages = ["torch", "gymnasium", "mujoco", "stable-baselines3", "sb3-contrib"]
    versions = [f"python {platform.python_version()}"]
    print(", ".join(versions + [f"{name} {version(name)}" for name in packages]))
    print(
        "| script | environments | steps/s | with --compile | SB3 | ratio | with --compile | spread |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.chdir(folder)
        for script in options.scripts:
            for num_envs in options.num_envs if script in PAIRS else [1]:
                turns = []
                for _ in range(options.repeats):
                    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                        speeds = [ours(script, options.env_id, num_envs, x) for x in (False, True)]
                        peer = theirs(script, options.env_id, num_envs, options.vec_normalize)
                    turns.append((*speeds, peer))
                eager, compiled, peer = (statistics.median(column) for column in zip(*turns))
                ratio, ratio_compiled = (
                    statistics.median(turn[i] / turn[2] for turn in turns) for i in (0, 1)
                )
                ratios = sorted(turn[1] / turn[2] for turn in turns)
                print(
                    f"| {script}.py | {num_envs} | {eager:,.0f} | {compiled:,.0f} | {peer:,.0f} | "
                    f"{ratio:.2f} | {ratio_compiled:.2f} | {ratios[0]:.2f}-{ratios[-1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
