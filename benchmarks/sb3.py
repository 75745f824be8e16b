"""Stable-Baselines3 and sb3-contrib on the same protocol as the scripts, for benchmarks/run.py.

    python benchmarks/run.py --scripts sb3_ppo sb3_trpo --seeds 301 302 303

Their own defaults, in one environment, on-policy with VecNormalize (as RL Zoo has it for MuJoCo;
without it their on-policy agents learn little there). It writes what run.py reads of a run:
args.json, episodes.csv and summary.json, in the folder runs/sb3. There is no --resume.
"""

import argparse
import importlib
import json
import time
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

PEERS = {name: "stable_baselines3" for name in ("a2c", "ppo", "ddpg", "td3", "sac")}
PEERS["trpo"] = "sb3_contrib"
ON_POLICY = ["a2c", "trpo", "ppo"]
FOLDER = Path("runs/sb3")


class Episodes(BaseCallback):
    """Writes a row for each episode that has ended, its rewards as the environment gave them."""

    def _on_training_start(self) -> None:
        self.start, self.returns = time.perf_counter(), []
        self.file = open(FOLDER / "episodes.csv", "w", buffering=1)
        print("step", "seconds", "episode_return", "length", sep=",", file=self.file)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if episode := info.get("episode"):
                self.returns.append(episode["r"])
                seconds = round(time.perf_counter() - self.start, 2)
                row = self.num_timesteps, seconds, episode["r"], episode["l"]
                print(*row, sep=",", file=self.file)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=[f"sb3_{x}" for x in PEERS])
    parser.add_argument("--env-id", default="HalfCheetah-v4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=1_000_000)
    parser.add_argument("--eval-episodes", type=int, default=100)
    args = parser.parse_args()
    name = args.name.removeprefix("sb3_")
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    packages = ["torch", "gymnasium", "stable-baselines3", "sb3-contrib"]
    content = {"args": vars(args), "versions": {x: version(x) for x in packages}}
    (FOLDER / "args.json").write_text(json.dumps(content, indent=2))

    envs = DummyVecEnv([lambda: Monitor(gym.make(args.env_id))])
    if name in ON_POLICY:
        envs = VecNormalize(envs)
    algorithm = getattr(importlib.import_module(PEERS[name]), name.upper())
    model = algorithm("MlpPolicy", envs, seed=args.seed, device="cpu")
    episodes, start = Episodes(), time.perf_counter()
    model.learn(args.total_timesteps, callback=episodes)
    summary = {"step": model.num_timesteps, "seconds": time.perf_counter() - start}

    env, returns = gym.make(args.env_id), []
    seed = 10**6 * args.seed + 999_999  # the scripts' evaluation has the same
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
    summary |= {"training_return": float(np.mean(episodes.returns[-100:]))}
    summary |= {"evaluation_return": float(np.mean(returns)), "evaluation_returns": returns}
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
