"""Stable-Baselines3 and sb3-contrib on the same protocol as the scripts, for benchmarks/run.py.

    python benchmarks/run.py --scripts sb3_ppo sb3_trpo --seeds 301 302 303

Their own defaults, in one environment, on-policy with VecNormalize (as the RL Zoo has it for MuJoCo;
without it their on-policy agents learn little there). run.py copies this file to sb3_ppo.py and so
on: the name says which algorithm. It writes what run.py reads of a run of ours: args.json,
episodes.csv, summary.json, in the folder runs/sb3. There is no --resume.
"""

import argparse
import importlib
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

ON_POLICY = {
    "sb3_a2c": "stable_baselines3.A2C",
    "sb3_trpo": "sb3_contrib.TRPO",
    "sb3_ppo": "stable_baselines3.PPO",
}
OFF_POLICY = {
    "sb3_ddpg": "stable_baselines3.DDPG",
    "sb3_td3": "stable_baselines3.TD3",
    "sb3_sac": "stable_baselines3.SAC",
}
FOLDER = Path("runs/sb3")


class Episodes(BaseCallback):
    """Writes a row for each episode that has ended, its rewards as the environment gave them."""

    def _on_training_start(self) -> None:
        self.start, self.returns = time.perf_counter(), []
        self.file = open(FOLDER / "episodes.csv", "w", buffering=1)
        print("step", "return", "length", "seconds", sep=",", file=self.file)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if episode := info.get("episode"):
                self.returns.append(episode["r"])
                row = self.num_timesteps, episode["r"], episode["l"]
                print(*row, round(time.perf_counter() - self.start, 2), sep=",", file=self.file)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--env-id", default="HalfCheetah-v4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=1_000_000)
    parser.add_argument("--eval-episodes", type=int, default=100)
    args = parser.parse_args()
    name = Path(__file__).stem
    package, kind = {**ON_POLICY, **OFF_POLICY}[name].split(".")
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    packages = ["torch", "gymnasium", "mujoco", "stable-baselines3", "sb3-contrib"]
    versions = {"python": platform.python_version()} | {x: version(x) for x in packages}
    content = {"script": name, "args": vars(args), "versions": versions}
    (FOLDER / "args.json").write_text(json.dumps(content, indent=2) + "\n")

    envs = DummyVecEnv([lambda: Monitor(gym.make(args.env_id))])
    if name in ON_POLICY:
        envs = VecNormalize(envs)
    algorithm = getattr(importlib.import_module(package), kind)
    model = algorithm("MlpPolicy", envs, seed=args.seed, device="cpu")
    episodes, start = Episodes(), time.perf_counter()
    model.learn(args.total_timesteps, callback=episodes)
    seconds = time.perf_counter() - start

    env, returns = gym.make(args.env_id), []
    seed = (10**6 * args.seed + 999_999) % 2**32  # the scripts' evaluation has the same
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        returns.append(0.0)
        done = False
        while not done:
            if name in ON_POLICY:
                obs = envs.normalize_obs(obs)
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            returns[-1] += float(reward)
            done = terminated or truncated
    summary = {
        "step": model.num_timesteps,
        "seconds": seconds,
        "training_return": float(np.mean(episodes.returns[-100:])),
        "evaluation_return": float(np.mean(returns)),
        "evaluation_std": float(np.std(returns)),
    }
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
