"""Steps per second of ppo.py beside Stable-Baselines3's PPO, at equal settings, in one run.

    pip install '.[benchmarks]' && python benchmarks/speed.py

Both train on the same environment with the same number of environments, rollout length, minibatch
size, epochs, networks (two of 64-64 tanh) and one PyTorch thread. They take turns, so that whatever
else the machine does hits both alike; the first two updates of each turn are not counted. ppo.py
does more in that time: it standardises observations and returns, recomputes the advantages in each
epoch and writes its logs. With --vec-normalize SB3 normalises too.
"""

import argparse
import csv
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

import torch  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

import ppo  # noqa: E402

WARM_UP, UPDATES, BATCH = 2, 6, 2048


def ours(env_id: str, num_envs: int) -> float:
    args = ppo.Args(
        env_id=env_id, num_envs=num_envs, num_steps=BATCH // num_envs, num_minibatches=BATCH // 64,
        total_timesteps=(WARM_UP + UPDATES) * BATCH, eval_episodes=0,
    )  # fmt: skip
    folder = ppo.train(args)
    with open(folder / "updates.csv") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return UPDATES * BATCH / (seconds[-1] - seconds[WARM_UP - 1])


def sb3(env_id: str, num_envs: int, normalize: bool) -> float:
    envs = make_vec_env(env_id, num_envs, seed=1)
    if normalize:
        envs = VecNormalize(envs)
    model = PPO(
        "MlpPolicy",
        envs,
        n_steps=BATCH // num_envs,
        batch_size=64,
        n_epochs=10,
        device="cpu",
        seed=1,
    )
    model.learn(WARM_UP * BATCH)
    start = time.perf_counter()
    model.learn(UPDATES * BATCH, reset_num_timesteps=False)
    return UPDATES * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--env-id", default="HalfCheetah-v4")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vec-normalize", action="store_true", help="SB3 with VecNormalize")
    options = parser.parse_args()
    torch.set_num_threads(1)
    packages = ["torch", "gymnasium", "mujoco", "stable-baselines3"]
    print(
        ", ".join(f"{name} {version(name)}" for name in packages),
        f"python {platform.python_version()}",
    )
    print("| environments | ppo.py, steps/s | SB3, steps/s | ratio | ratios of the turns |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.stderr = open(os.devnull, "w")  # progress bars
        for num_envs in options.num_envs:
            turns = []
            for _ in range(options.repeats):
                stdout, sys.stdout = sys.stdout, sys.stderr
                turns.append(
                    (
                        ours(options.env_id, num_envs),
                        sb3(options.env_id, num_envs, options.vec_normalize),
                    )
                )
                sys.stdout = stdout
            a, b = (statistics.median(column) for column in zip(*turns))
            ratios = [x / y for x, y in turns]
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            print(
                f"| {num_envs} | {a:,.0f} | {b:,.0f} | {statistics.median(ratios):.2f} | {spread} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
