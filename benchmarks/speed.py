"""Speed of the scripts, beside Stable-Baselines3's at equal settings and beside what is possible.

    pip install '.[benchmarks]'
    python benchmarks/speed.py                          # everything; nothing else may run
    python benchmarks/speed.py --parts peers --scripts ppo --num-envs 8 --repeats 3
    python benchmarks/report.py                         # tables and chart from results/speed.csv

Parts:
    peers    each script, with and without --compile, and its counterpart in SB3 or sb3-contrib, on
             the same environment with the same number of environments, rollout length, minibatch
             size, epochs, networks (on-policy two of 64-64 tanh, off-policy 256-256 ReLU, batches of
             256, one update a step). They take turns, so that whatever else the machine does hits
             all alike; the first part of each turn is not counted. The scripts do more in that time:
             on-policy they standardise observations and values, ppo.py recomputes its advantages in
             each epoch, and all write their logs. With --vec-normalize SB3 normalises too.
    limits   the environment alone; the machine's rate of matrix products, and the operations in one
             update, which together bound the off-policy scripts
    profile  where a step's time goes: environment, acting, matrix products, the rest
    threads  each script with 1 and 2 threads of PyTorch
    envs     ppo.py with 1 to 64 environments, 2,048 steps a rollout
    buffer   sac.py with a full replay buffer of 10⁴ to 10⁶ steps: steps/s and memory
    start    seconds until the first step, and what --compile adds until the first update
    processes  a3c.py with 1, 2 and 4 workers; a2c.py and ppo.py alone and under torchrun

Every measurement is a process of its own, with the threads set to 1 where nothing else is said. A
row of results/speed.csv is one measurement; those of an earlier day in the same place are replaced.
"""

import argparse
import contextlib
import csv
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from run import RESULTS, code_hash, commit, cpu, path_of, read  # noqa: E402

PATH = RESULTS / "speed.csv"
KEY = "part", "script", "variant", "num_envs", "threads", "buffer_size", "quantity"

# script: (class of the peer, steps of a rollout over all environments or None for 5 in each, our
#          arguments, the peer's arguments, updates before the clock starts, updates that count)
ON_POLICY = {
    "a2c": ("stable_baselines3.A2C", None, {}, {}, 100, 400),
    "trpo": (
        "sb3_contrib.TRPO", 2048, dict(cg_iterations=15, critic_batch_size=128, critic_epochs=10),
        dict(batch_size=128, cg_max_steps=15, n_critic_updates=10), 2, 6,
    ),
    "ppo": (
        "stable_baselines3.PPO", 2048, dict(num_minibatches=32), dict(batch_size=64, n_epochs=10), 2, 6,
    ),
}  # fmt: skip
EPISODIC = ["reinforce", "reinforce_baseline"]  # SB3 has no counterpart
OFF_POLICY = {
    "ddpg": "stable_baselines3.DDPG",
    "td3": "stable_baselines3.TD3",
    "sac": "stable_baselines3.SAC",
}
SCRIPTS = [*EPISODIC, *ON_POLICY, *OFF_POLICY]
# Updates of the episodic scripts, each 3 episodes of 1,000 steps; and off-policy steps.
WARM_UP, COUNTED = 2, 5


# ── One measurement, in a process of its own ──────────────────────────────────────────────────────


def arguments(job: dict):
    """The script's arguments for a job, and the rows of updates.csv between which the clock runs."""
    script, n = job["script"], job.get("num_envs") or 1
    settings = dict(env_id=job["env_id"], eval_episodes=0, checkpoint_every=10**9)
    settings |= dict(num_threads=job["threads"])
    if job["variant"] == "compile":
        settings |= dict(compile=True)
    if script in EPISODIC:  # three of HalfCheetah's episodes make a batch of 2,048 or more
        settings |= dict(total_timesteps=3000 * (WARM_UP + COUNTED))
        first, last = WARM_UP - 1, WARM_UP + COUNTED - 1
    elif script in ON_POLICY:
        _, rollout, ours, _, warm_up, updates = ON_POLICY[script]
        steps = rollout // n if rollout else 5
        settings |= dict(num_envs=n, num_steps=steps, **ours)
        settings |= dict(total_timesteps=(warm_up + updates) * steps * n)
        first, last = warm_up - 1, warm_up + updates - 1
    else:  # a row for each episode of 1,000 steps
        settings |= dict(total_timesteps=3000, learning_starts=100)
        first, last = 0, 2
    if job.get("buffer_size"):
        settings |= dict(buffer_size=job["buffer_size"])
    module = importlib.import_module(script)
    return module, module.Args(**settings), first, last


def ours(job: dict) -> float:
    """Steps per second of our script, from its own log."""
    module, args, first, last = arguments(job)
    with open(module.train(args) / "updates.csv") as file:
        rows = list(csv.DictReader(file))
    steps, seconds = (
        float(rows[last][name]) - float(rows[first][name]) for name in ("step", "seconds")
    )
    return steps / seconds


def theirs(job: dict) -> float:
    """Steps per second of the counterpart."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    def peer(name: str):
        module, kind = name.split(".")
        return getattr(importlib.import_module(module), kind)

    script, n = job["script"], job["num_envs"]
    envs = make_vec_env(job["env_id"], n, seed=1)
    if job["variant"] == "SB3 + VecNormalize":
        envs = VecNormalize(envs)
    if script in OFF_POLICY:
        model = peer(OFF_POLICY[script])(
            "MlpPolicy", envs, batch_size=256, learning_starts=100, train_freq=1, gradient_steps=1,
            policy_kwargs={"net_arch": [256, 256]}, device="cpu",
        )  # fmt: skip
        warm_up, steps = 1000, 2000
    else:
        name, rollout, _, settings, warm_up, updates = ON_POLICY[script]
        per_env = rollout // n if rollout else 5
        model = peer(name)("MlpPolicy", envs, n_steps=per_env, device="cpu", seed=1, **settings)
        warm_up, steps = warm_up * per_env * n, updates * per_env * n
    model.learn(warm_up)
    start = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    return steps / (time.perf_counter() - start)


def fill_buffers(module) -> None:
    """From now on each new replay buffer of the script is full, of zeros and ones by chance."""
    import numpy as np

    init = module.ReplayBuffer.__init__

    def full(buffer, *args) -> None:
        init(buffer, *args)
        for array in buffer.arrays.values():
            for start in range(0, len(array), 10_000):  # without a second copy of it all
                part = array[start : start + 10_000]
                part[...] = np.random.standard_normal(part.shape) > 0
        buffer.filled = buffer.size

    module.ReplayBuffer.__init__ = full


def environment_alone(env_id: str, steps: int = 20_000) -> float:
    """Steps per second of one environment with random actions that are drawn beforehand."""
    import gymnasium as gym

    env = gym.make(env_id)
    actions = [env.action_space.sample() for _ in range(1000)]
    env.reset(seed=1)
    start = time.perf_counter()
    for t in range(steps):
        *_, terminated, truncated, _ = env.step(actions[t % 1000])
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def matrix_products(size: int = 256) -> float:
    """GFLOP per second of products of square float32 matrices: the best of 20 times 50."""
    import torch

    a, b, c = torch.randn(3, size, size)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(50):
            torch.mm(a, b, out=c)
        seconds.append(time.perf_counter() - start)
    return 50 * 2 * size**3 / min(seconds) / 1e9


def operations(job: dict) -> float:
    """MFLOP of matrix products for each environment step, acting and updates, as PyTorch counts."""
    from torch.utils.flop_counter import FlopCounterMode

    module, args, _, _ = arguments(job)
    args.total_timesteps = 1000 if job["script"] in OFF_POLICY else args.total_timesteps
    with FlopCounterMode(display=False) as counter:
        folder = module.train(args)
    steps = json.loads((folder / "summary.json").read_text())["step"]
    if job["script"] in OFF_POLICY:
        steps -= args.learning_starts
    return counter.get_total_flops() / steps / 1e6


def profile(job: dict) -> dict[str, float]:
    """Microseconds a step: in env.step, in the rest of acting and storing, in all the rest.

    And in the matrix products of a run under PyTorch's profiler, as a share of its operations'.
    """
    import torch

    module, args, first, last = arguments(job)
    spent = {"environment": 0.0, "play": 0.0}

    def timed(owner, name: str, label: str) -> None:
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[label] += time.perf_counter() - start

        setattr(owner, name, wrapper)

    timed(module.EpisodeInfo, "step", "environment")  # the outermost wrapper of each environment
    for name in ("play", "play_episode"):
        if hasattr(module, name):
            timed(module, name, "play")
    marks, log_update = [], module.Run.log_update

    def mark(run, **metrics):
        log_update(run, **metrics)
        marks.append((run.step, time.perf_counter(), *spent.values()))

    module.Run.log_update = mark
    module.train(args)
    steps, total, environment, play = (b - a for a, b in zip(marks[first], marks[last]))
    parts = {"environment": environment, "acting": max(play - environment, 0.0)}
    parts["updates"] = total - sum(parts.values())
    if job["variant"] == "eager":
        activities = [torch.profiler.ProfilerActivity.CPU]
        few = 1000 if job["script"] in OFF_POLICY else marks[0][0]  # one update; or 900 of them
        args.total_timesteps = few
        module.Run.log_update = log_update
        with torch.profiler.profile(activities=activities) as record:
            module.train(args)
        times = {row.key: row.self_cpu_time_total for row in record.key_averages()}
        products = sum(times.get(f"aten::{name}", 0) for name in ("mm", "addmm", "bmm"))
        parts["share of matrix products"] = products / sum(times.values()) * steps / 1e6
    return {name: seconds / steps * 1e6 for name, seconds in parts.items()}


def start_up(job: dict) -> dict[str, float]:
    """Seconds from the command until the run's clock starts, and from there to the first update."""
    module, args, _, _ = arguments(job)
    script = job["script"]
    words = ["--env-id", job["env_id"], "--eval-episodes", "0"]
    if script in ON_POLICY:
        total = args.num_envs * args.num_steps
        words += ["--num-envs", str(args.num_envs), "--num-steps", str(args.num_steps)]
        words += ["--total-timesteps", str(total)]
    elif script in OFF_POLICY:
        words += ["--total-timesteps", "102", "--learning-starts", "100"]  # td3.py waits for two
    else:
        words += ["--total-timesteps", "3000"]
    words += ["--compile"] * (job["variant"] == "compile")
    with tempfile.TemporaryDirectory() as cache:  # nothing compiled on an earlier day
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-W", "ignore", str(ROOT / f"{script}.py"), *words],
            check=True, env=env, capture_output=True,
        )  # fmt: skip
        wall = time.perf_counter() - start
    (summary,) = Path("runs").glob("*/summary.json")
    seconds = json.loads(summary.read_text())["seconds"]
    return {"until the first step": wall - seconds, "until the first update": seconds}


def processes(job: dict) -> float:
    """Steps per second of a script in several processes, with its defaults, from its own log."""
    script, count = job["script"], job["variant"].split()[0]
    command = [sys.executable, "-W", "ignore"]
    if script != "a3c" and count != "1":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    command += [str(ROOT / f"{script}.py"), "--env-id", job["env_id"], "--eval-episodes", "0"]
    command += ["--total-timesteps", str({"a3c": 60_000, "a2c": 150_000, "ppo": 40_960}[script])]
    command += ["--num-workers", count] * (script == "a3c")
    subprocess.run(command, check=True, capture_output=True)
    (path,) = Path("runs").glob("*/updates.csv")
    with open(path) as file:
        rows = list(csv.DictReader(file))
    first, last = rows[len(rows) // 5], rows[-1]
    steps, seconds = (float(last[name]) - float(first[name]) for name in ("step", "seconds"))
    return steps / seconds


def measure(job: dict) -> dict[str, float]:
    """Runs one job in this process; quantity → number."""
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(job["threads"])
    part = job["part"]
    if part == "limits":
        if job["script"]:
            return {"MFLOP/step": operations(job)}
        return {
            "environment alone, steps/s": environment_alone(job["env_id"]),
            "matrix products, GFLOP/s": matrix_products(),
        }
    if part == "profile":
        return profile(job)
    if part == "start":
        return start_up(job)
    if part == "processes":
        return {"steps/s": processes(job)}
    if part == "buffer":
        fill_buffers(importlib.import_module(job["script"]))
    speed = theirs(job) if job["variant"].startswith("SB3") else ours(job)
    found = {"steps/s": speed}
    if part == "buffer":  # the most that the process has held, in kilobytes on Linux
        found["memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return found


# ── All jobs ──────────────────────────────────────────────────────────────────────────────────────


def jobs(options: argparse.Namespace) -> list[dict]:
    """The measurements of the chosen parts, in turns."""
    found, scripts = [], options.scripts
    on_policy = [script for script in scripts if script in ON_POLICY]

    def add(part: str, script: str = "", variant: str = "eager", **more) -> None:
        job = dict(part=part, script=script, variant=variant, num_envs=1, threads=1, buffer_size="")
        found.append(job | dict(env_id=options.env_id) | more)

    def compiles(script: str) -> list[str]:
        return ["eager", "compile"] if script != "reinforce" else ["eager"]

    counts = {script: options.num_envs if script in ON_POLICY else [1] for script in scripts}
    peer = "SB3 + VecNormalize" if options.vec_normalize else "SB3"
    for turn in range(options.repeats):
        if "peers" in options.parts:
            for script in scripts:
                for n in counts[script]:
                    for variant in [*compiles(script), *[peer] * (script not in EPISODIC)]:
                        add("peers", script, variant, num_envs=n, turn=turn)
        if "limits" in options.parts:
            add("limits", turn=turn)
        if "threads" in options.parts:
            for script in scripts:
                for threads in (1, 2):
                    n = max(counts[script])
                    add("threads", script, num_envs=n, threads=threads, turn=turn)
        if "envs" in options.parts and "ppo" in scripts:
            for n in (1, 2, 4, 8, 16, 32, 64):
                for variant in ("eager", "compile"):
                    add("envs", "ppo", variant, num_envs=n, turn=turn)
        if "processes" in options.parts:
            for script, counts_of in {"a2c": (1, 2), "a3c": (1, 2, 4), "ppo": (1, 2)}.items():
                for count in counts_of:
                    add("processes", script, f"{count} process" + "es" * (count > 1), turn=turn)
        if "buffer" in options.parts and "sac" in scripts:
            for size in (10_000, 100_000, 1_000_000):
                add("buffer", "sac", buffer_size=size, turn=turn)
    for script in scripts:
        n = max(counts[script])
        if "limits" in options.parts and script in OFF_POLICY:
            add("limits", script, turn=0)
        if "profile" in options.parts:
            for variant in compiles(script):
                add("profile", script, variant, num_envs=n, turn=0)
        if "start" in options.parts:
            for variant in compiles(script):
                add("start", script, variant, num_envs=n, turn=0)
    assert all(job["script"] in on_policy for job in found if job["num_envs"] > 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["peers", "limits", "profile", "threads", "envs", "buffer", "start", "processes"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--scripts", nargs="+", default=SCRIPTS, choices=SCRIPTS)
    parser.add_argument("--env-id", default="HalfCheetah-v4")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[8], help="on-policy")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vec-normalize", action="store_true", help="SB3 with VecNormalize")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # one measurement, as JSON
    options = parser.parse_args()
    if options.job:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            found = measure(json.loads(options.job))
        print(json.dumps(found))
        return
    revision = commit(sorted({*options.scripts, "a3c"}))
    names = ["torch", "gymnasium", "mujoco", "stable-baselines3", "sb3-contrib"]
    versions = [f"python {platform.python_version()}", *(f"{x} {version(x)}" for x in names)]
    place = {"versions": ", ".join(versions), "cpu": cpu()}
    todo, new, fresh = jobs(options), [], set()
    for count, job in enumerate(todo, 1):
        env = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, __file__, "--job", json.dumps(job)],
                check=False, cwd=folder, env=env, capture_output=True, text=True,
            )  # fmt: skip
        if done.returncode:
            sys.exit(f"{job}\n{done.stdout}{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        ours = job["script"] and job["variant"] != "SB3"
        code = code_hash(path_of(job["script"]).read_text()) if ours else ""
        about = {"commit": revision, "code": code} | place
        for quantity, number in found.items():
            row = {name: job[name] for name in KEY[:-1]} | {"quantity": quantity}
            key = tuple(str(row[name]) for name in KEY)
            # The first turn's rows take the place of those of an earlier day.
            old = read(PATH) if key in fresh else [
                line for line in read(PATH) if tuple(line[name] for name in KEY) != key
            ]  # fmt: skip
            fresh.add(key)
            new = [*old, row | {"turn": job["turn"], "value": f"{number:.4g}"} | about]
            temporary = PATH.with_suffix(".tmp")
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, new[-1], lineterminator="\n")
                writer.writeheader()
                writer.writerows(new)
            os.replace(temporary, PATH)
        label = " ".join(str(job[name]) for name in KEY[:-1] if job[name])
        numbers = ", ".join(f"{name} {number:,.4g}" for name, number in found.items())
        print(f"[{count}/{len(todo)}] {label}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
