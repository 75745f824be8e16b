"""Steps per second of the scripts on one core of the CPU, beside other code.

    pip install '.[benchmarks]'
    python benchmarks/speed.py --parts peers torchrun --sbx-python PATH/TO/VENV/bin/python
    python benchmarks/report.py              # tables from results/speed.csv

Parts; nothing else may run on the machine meanwhile:
    peers     each script on HalfCheetah-v4, with and without --compile, beside Stable-Baselines3 or
              sb3-contrib and SBX, at equal settings (EQUAL and PEERS below). SBX needs an
              environment of its own, `pip install sbx-rl 'gymnasium[mujoco]'`
    torchrun  ppo.py in 1 and 2 processes, a3c.py with 1 and 2 workers, on 2 cores, with their
              defaults; a step of the environment takes 1 ms more than Pendulum-v1's

Every measurement is a process of its own. The variants take turns, so that whatever slows the
machine down hits all alike; compare within a turn. Steps per second of a script are those of its
updates.csv, of a peer those of `learn`, both after a warm-up. A row of results/speed.csv is one
measurement; a part's first turn replaces the rows that the part has of the same script.
"""

import argparse
import csv
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from run import OFF_POLICY, RESULTS, ROOT, commit, cpu, read

PATH = RESULTS / "speed.csv"
ENV_ID = "HalfCheetah-v4"
NUM_ENVS = 8  # of the on-policy scripts, and of the peers beside them
COMPILES = ["ppo", *OFF_POLICY]
PACKAGES = "torch stable-baselines3 sb3-contrib sbx-rl jax gymnasium mujoco".split()
EQUAL = {  # flags that make the settings those of PEERS
    "reinforce": "",
    "reinforce_baseline": "",
    "a2c": f"--num-envs {NUM_ENVS} --num-steps 5",
    "trpo": (
        f"--num-envs {NUM_ENVS} --num-steps 256 --cg-iterations 15 --critic-batch-size 128 "
        "--critic-epochs 10"
    ),
    "ppo": f"--num-envs {NUM_ENVS} --num-steps 256 --num-minibatches 32",
} | dict.fromkeys(OFF_POLICY, "--learning-starts 100")
REPLAY = {"batch_size": 256, "learning_starts": 100, "train_freq": 1, "gradient_steps": 1}
REPLAY["policy_kwargs"] = {"net_arch": [256, 256]}
PEERS = {
    "a2c": ("stable_baselines3.A2C", {"n_steps": 5}),
    "trpo": (
        "sb3_contrib.TRPO",
        {"n_steps": 256, "batch_size": 128, "cg_max_steps": 15, "n_critic_updates": 10},
    ),
    "ppo": ("stable_baselines3.PPO", {"n_steps": 256, "batch_size": 64, "n_epochs": 10}),
} | {script: (f"stable_baselines3.{script.upper()}", REPLAY) for script in OFF_POLICY}
# Rows of updates.csv: how many are warm-up, how many count, and the steps of each.
ROWS = {"reinforce": (2, 5, 3000), "reinforce_baseline": (2, 5, 3000), "a2c": (100, 400, 40)}
ROWS |= dict.fromkeys(("trpo", "ppo"), (2, 6, 2048)) | dict.fromkeys(OFF_POLICY, (1, 2, 1000))
TORCHRUN_ROWS = {"ppo": (2, 8, 2048), "a3c": (50, 250, 32)}
SLOW = '''
import time
import gymnasium as gym

class Slow(gym.Wrapper):
    """Pendulum-v1, with steps that take 1 ms more."""
    def step(self, action):
        end = time.perf_counter() + 1e-3
        while time.perf_counter() < end:
            pass
        return self.env.step(action)

gym.register("Slow-v0", lambda: Slow(gym.make("Pendulum-v1")), max_episode_steps=200)
'''


@dataclass
class Job:
    """A measurement. A script is ours, unless `peer` names a class, as stable_baselines3.PPO."""

    part: str
    script: str
    variant: str
    flags: str = ""
    env_id: str = ENV_ID
    cores: int = 1
    processes: int = 1  # of torchrun
    peer: str = ""
    python: str = sys.executable


def jobs(options: argparse.Namespace) -> list[Job]:
    """The measurements of the chosen parts in one turn."""
    found = []
    for script in options.scripts:
        graphs = {"eager": ""} | ({"compile": " --compile"} if script in COMPILES else {})
        if "peers" in options.parts:
            for variant, flag in graphs.items():
                found.append(Job("peers", script, variant, EQUAL[script] + flag))
            if script in PEERS:
                found.append(Job("peers", script, "SB3", peer=PEERS[script][0]))
            if script in COMPILES and options.sbx_python:
                python, peer = os.path.abspath(options.sbx_python), f"sbx.{script.upper()}"
                found.append(Job("peers", script, "SBX", peer=peer, python=python))
    for n in (1, 2) if "torchrun" in options.parts else ():
        name = "1 process" if n == 1 else f"{n} processes"
        slow = {"env_id": "slow:Slow-v0", "cores": 2}
        found.append(Job("torchrun", "ppo", name, processes=n, **slow))
        found.append(Job("torchrun", "ppo", f"{name}, compile", "--compile", processes=n, **slow))
        found.append(Job("torchrun", "a3c", name, f"--num-workers {n}", **slow))
    return found


def steps_per_second(rows: list[dict[str, str]], warm_up: int, counted: int) -> float:
    """Of the `counted` rows of updates.csv that follow the `warm_up` first ones."""
    first, last = rows[warm_up - 1], rows[warm_up + counted - 1]
    steps, seconds = (float(last[name]) - float(first[name]) for name in ("step", "seconds"))
    return steps / seconds


def call(command: list[str], folder: str, cores: int = 1) -> str:
    """Runs a command in the folder, on so many cores, without a GPU; returns what it printed."""

    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):  # not on a Mac
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])

    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": folder}
    options = {"cwd": folder, "env": env, "preexec_fn": pin}
    done = subprocess.run(command, **options, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def ours(job: Job) -> tuple[float, str]:
    """Steps per second of a script of ours, and the versions."""
    text = (ROOT / f"{job.script}.py").read_text()
    warm_up, counted, steps = (TORCHRUN_ROWS if job.part == "torchrun" else ROWS)[job.script]
    words = [f"{job.script}.py", "--env-id", job.env_id, "--eval-episodes", "0"]
    words += ["--save-every", "1000000000"]
    words += ["--total-timesteps", str((warm_up + counted) * steps), *job.flags.split()]
    if job.processes > 1:
        torchrun = f"-m torch.distributed.run --standalone --nproc-per-node {job.processes}"
        words = [*torchrun.split(), *words]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{job.script}.py").write_text(text)
        Path(folder, "slow.py").write_text(SLOW)
        call([job.python, *words], folder, job.cores)
        (path,) = Path(folder).glob("runs/*/updates.csv")
        return steps_per_second(read(path), warm_up, counted), versions()


def theirs(job: Job) -> tuple[float, str]:
    """What `learn` finds, in a process of its own, perhaps of another Python."""
    with tempfile.TemporaryDirectory() as folder:
        lines = call([job.python, __file__, "--learn", json.dumps(asdict(job))], folder)
    return tuple(json.loads(lines.splitlines()[-1]))


def learn(job: Job) -> tuple[float, str]:
    """Steps per second of a class of Stable-Baselines3, sb3-contrib or SBX, and the versions."""
    from stable_baselines3.common.env_util import make_vec_env

    package, kind = job.peer.split(".")
    algorithm = getattr(importlib.import_module(package), kind)
    envs = make_vec_env(job.env_id, 1 if job.script in OFF_POLICY else NUM_ENVS, seed=1)
    model = algorithm("MlpPolicy", envs, seed=1, **PEERS[job.script][1])
    warm_up, counted, steps = ROWS[job.script]
    model.learn(warm_up * steps)
    before, start = model.num_timesteps, time.perf_counter()
    model.learn(counted * steps, reset_num_timesteps=False)
    return (model.num_timesteps - before) / (time.perf_counter() - start), versions()


def versions() -> str:
    """Python's, and those of the packages that are installed."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def write(job: Job, turn: int, speed: float, packages: str, revision: str, fresh: set) -> None:
    """Adds the row of a measurement; the first of a part and script replaces those there were."""
    place = job.part, job.script
    rows = read(PATH)
    if place not in fresh:
        rows = [row for row in rows if (row["part"], row["script"]) != place]
    fresh.add(place)
    row = {name: getattr(job, name) for name in ("part", "script", "variant", "env_id")}
    row |= {"quantity": "steps/s", "turn": turn, "value": f"{speed:.4g}"}
    row |= {"commit": revision, "versions": packages, "cpu": cpu()}
    rows.append(row)
    with open(PATH.with_suffix(".tmp"), "w", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(PATH.with_suffix(".tmp"), PATH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ["peers", "torchrun"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts[:1])
    parser.add_argument("--scripts", nargs="+", choices=list(EQUAL), default=list(EQUAL))
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--sbx-python", help="the Python of an environment that has sbx-rl")
    parser.add_argument("--learn", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.learn:
        print(json.dumps(learn(Job(**json.loads(options.learn)))))
        return
    todo, fresh = jobs(options), set()
    for turn in range(options.repeats):
        for count, job in enumerate(todo, 1):
            revision = "" if job.peer else commit(f"{job.script}.py")
            speed, packages = theirs(job) if job.peer else ours(job)
            name = f"turn {turn + 1}, {count}/{len(todo)}: {job.part} {job.script} {job.variant}"
            print(f"{name}: {speed:,.4g} steps/s", flush=True)
            write(job, turn, speed, packages, revision, fresh)


if __name__ == "__main__":
    main()
