"""Scripts × environments × seeds, each as one plain command; results as small CSV files.

    python benchmarks/run.py --scripts ppo trpo --env-ids HalfCheetah-v4 --seeds 301 302 303
    python benchmarks/run.py ... --print        prints the jobs, one command a line; runs nothing

results/runs.csv gets one row for each finished run, results/curves/<script>__<env_id>.csv the mean
training return in each hundredth of its steps, and results/policies/<script>__<env_id>/ what the
on-policy scripts need to show the policy of the lowest seed: --resume with --total-timesteps 0. A
job with a row is not run again, and an interrupted one resumes from its checkpoint in
benchmarks/runs: repeat the command after a failure. The lines of --print may be run by anything
(xargs, a cluster, machines that share the folder), each by one process only.
"""

import argparse
import csv
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / "runs"  # not in the repository: the folders of unfinished runs
CURVE_POINTS = 100
MUJOCO = ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"]
OFF_POLICY = ["ddpg", "td3", "sac"]
PEERS = [f"sb3_{name}" for name in ("a2c", "trpo", "ppo", "ddpg", "td3", "sac")]

# Flags of a script on an environment, where they differ from the defaults, which are for MuJoCo.
FLAGS = {
    ("reinforce", "CartPole-v1"): "--total-timesteps 200000 --batch-size 500",
    ("reinforce_baseline", "CartPole-v1"): "--total-timesteps 200000 --batch-size 1000",
    ("a2c", "CartPole-v1"): "--total-timesteps 500000",
    ("trpo", "CartPole-v1"): "--total-timesteps 100000 --num-envs 8 --num-steps 128",
    ("ppo", "CartPole-v1"): "--total-timesteps 100000",
    ("reinforce", "Acrobot-v1"): "--total-timesteps 500000 --learning-rate 1e-3 --batch-size 1000",
    ("reinforce_baseline", "Acrobot-v1"): "--total-timesteps 500000",
    ("a2c", "Acrobot-v1"): "--total-timesteps 500000",
    ("trpo", "Acrobot-v1"): "--total-timesteps 500000",
    ("ppo", "Acrobot-v1"): "--total-timesteps 1000000",
    ("reinforce", "Pendulum-v1"): "--total-timesteps 300000 --gamma 0.9",
    ("reinforce_baseline", "Pendulum-v1"): "--total-timesteps 300000 --gamma 0.9",
    ("a2c", "Pendulum-v1"): (
        "--total-timesteps 1000000 --learning-rate 2e-3 --gamma 0.95 --num-envs 8 --num-steps 8 "
        "--ent-coef 0.003 --max-grad-norm 0.3"
    ),
    ("trpo", "Pendulum-v1"): "--total-timesteps 300000 --gamma 0.95 --num-envs 8 --num-steps 256",
    ("ppo", "Pendulum-v1"): (
        "--total-timesteps 300000 --learning-rate 1e-3 --gamma 0.95 --num-envs 8 --num-steps 256 "
        "--ent-coef 0.003"
    ),
}
for script in OFF_POLICY:
    FLAGS[script, "Pendulum-v1"] = "--total-timesteps 20000 --learning-starts 1000"
for env_id in MUJOCO[1:]:
    FLAGS["sac", env_id] = "--total-timesteps 200000"  # until measured over 1,000,000


def flags_of(script: str, env_id: str) -> str:
    """The flags of a job; Stable-Baselines3 gets the same number of steps, and its own settings."""
    flags = FLAGS.get((script.removeprefix("sb3_"), env_id), "")
    return " ".join(re.findall(r"--total-timesteps \d+", flags)) if script in PEERS else flags


def command_of(job: dict, eval_episodes: int, compile: bool) -> list[str]:
    """The words of a job's command, from the project's folder on."""
    peer = job["script"] in PEERS
    words = ["benchmarks/sb3.py", job["script"]] if peer else [f"{job['script']}.py"]
    words += ["--env-id", job["env_id"], "--seed", job["seed"], *job["flags"].split()]
    words += ["--eval-episodes", str(eval_episodes)]
    has_it = not peer and "compile: bool" in (ROOT / words[0]).read_text()
    return words + ["--compile"] * (compile and has_it)


def commit(path: str) -> str:
    """The last commit of a script; with a + where the script differs; nothing without git."""
    git, options = ["git", "-C", str(ROOT)], dict(capture_output=True, text=True)
    last = subprocess.run([*git, "log", "-1", "--format=%h", "--", path], **options)
    same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", path], **options)
    return last.stdout.strip() + "+" * (same.returncode == 1)


def digest(path: str) -> str:
    """Names a script's code: its text without docstrings and comments."""
    code = re.sub(r'"""[\s\S]*?"""|\s*# .*', "", (ROOT / path).read_text())
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def cpu() -> str:
    """The processor's name and the number of cores."""
    path = Path("/proc/cpuinfo")
    found = path.exists() and re.search(r"model name\s*: (.*)", path.read_text())
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path) as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: list[dict]) -> None:
    """Adds rows to a CSV file, in the order of its own columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.exists() and path.stat().st_size > 0
    columns = path.open().readline().strip().split(",") if known else list(rows[0])
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not known:
            writer.writeheader()
        writer.writerows(rows)


def thinned(episodes: list[dict[str, str]], total: int) -> list[dict[str, float]]:
    """For each hundredth of the steps: its end, and means over the episodes that ended in it."""
    bins = {}
    for row in episodes:
        index = min(int(float(row["step"])) * CURVE_POINTS // (total + 1), CURVE_POINTS - 1)
        bins.setdefault(index, []).append(row)
    points = []
    for index, rows in sorted(bins.items()):
        point = {"step": (index + 1) * total // CURVE_POINTS}
        for column, name in ("return", "episode_return"), ("seconds", "seconds"):
            point[column] = round(statistics.mean(float(row[name]) for row in rows), 1)
        points.append(point)
    return points


def keep_policy(job: dict, run_folder: Path) -> None:
    """Keeps what --resume needs to show the policy, unless runs.csv has a lower seed of its cell."""
    cell = {name: job[name] for name in ("script", "env_id", "flags")}
    rows = [row for row in read(RESULTS / "runs.csv") if cell.items() <= row.items()]
    if all(int(job["seed"]) < int(row["seed"]) for row in rows):
        path = RESULTS / "policies" / f"{job['script']}__{job['env_id']}"
        path.mkdir(parents=True, exist_ok=True)
        for name in "args.json", "checkpoint.pt":
            shutil.copy(run_folder / name, path)


def name_of(job: dict) -> str:
    return f"{job['script']}__{job['env_id']}__{job['seed']}"


def run(job: dict, options: argparse.Namespace) -> dict:
    """Runs a job, or what is left of it; writes and returns its row.

    A run that diverged is not tried again: with other random numbers it might not, and would count.
    A run that failed raises a RuntimeError with what it printed.
    """
    name, words = name_of(job), command_of(job, options.eval_episodes, options.compile)
    revision, code = commit(words[0]), digest(words[0])
    # Only the same command of the same code resumes a run.
    folder = WORK / re.sub(r"[^\w.=+-]+", "_", " ".join([*words, code]))
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / "lock", "w")  # the script inherits it, so it holds as long as that runs
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(f"{name}: another process runs it") from None
    diverged = folder / "diverged.txt"
    if diverged.exists():
        raise RuntimeError(f"{name}: it diverged, see {diverged}")
    checkpoints = sorted(folder.glob("runs/*/checkpoint.pt"))
    resume = ["--resume", str(checkpoints[-1].parent)] if checkpoints else []
    command = [sys.executable, "-W", "ignore", str(ROOT / words[0]), *words[1:], *resume]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, pass_fds=[lock.fileno()]
    )
    if done.returncode:
        if "FloatingPointError" in done.stderr:
            diverged.write_text(done.stderr)
        raise RuntimeError(f"{name}: {shlex.join(command)}\n{done.stdout}{done.stderr}")
    run_folder = sorted(folder.glob("runs/*/summary.json"))[-1].parent
    summary = json.loads((run_folder / "summary.json").read_text())
    returns = summary["evaluation_returns"]
    if not returns or not math.isfinite(summary["training_return"]):
        raise RuntimeError(f"{name}: no episode has ended, in training or in the evaluation")
    stored = json.loads((run_folder / "args.json").read_text())["versions"]
    versions = {"python": platform.python_version(), **stored, "mujoco": version("mujoco")}
    row = job | {
        "steps": summary["step"],
        "training_return": round(summary["training_return"], 1),
        "evaluation_return": round(statistics.mean(returns), 1),
        "evaluation_std": round(statistics.pstdev(returns), 1),
        "seconds": round(summary["seconds"]),
        "resumed": "yes" if resume else "no",  # with several environments, a different run
        "commit": revision,
        "digest": code,
        "command": shlex.join(["python", *words]),
        "versions": ", ".join(f"{package} {number}" for package, number in versions.items()),
        "cpu": cpu(),
    }
    curve = thinned(read(run_folder / "episodes.csv"), summary["step"])
    points = [{"seed": job["seed"]} | point for point in curve]
    append(RESULTS / "curves" / f"{job['script']}__{job['env_id']}.csv", points)
    if job["script"] not in PEERS + OFF_POLICY:  # theirs would hold the replay buffer, 0.3 GB
        keep_policy(job, run_folder)
    append(RESULTS / "runs.csv", [row])
    shutil.rmtree(folder)
    return row


def is_done(job: dict, eval_episodes: int) -> bool:
    """Whether runs.csv has a row of this job, with as many episodes of evaluation."""
    rows = [row for row in read(RESULTS / "runs.csv") if job.items() <= row.items()]
    return any(f"--eval-episodes {eval_episodes} " in row["command"] + " " for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    others = {"rlhf", "grpo", "exercises"}  # the first two: language.py
    known = {path.stem for path in ROOT.glob("*.py")} - others
    parser.add_argument("--scripts", nargs="+", choices=sorted(known) + PEERS, required=True)
    parser.add_argument("--env-ids", nargs="+", default=MUJOCO)
    # No setting was tuned on these seeds (results/trials.csv).
    parser.add_argument("--seeds", nargs="+", default=["601", "602", "603"])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--compile", action="store_true", help="for the scripts that have it")
    parser.add_argument("--eval-episodes", type=int, default=100, help="the tables need 100")
    parser.add_argument("--print", action="store_true", help="print the jobs, run nothing")
    options = parser.parse_args()
    jobs = [
        {"script": script, "env_id": env_id, "seed": seed, "flags": flags_of(script, env_id)}
        for seed in dict.fromkeys(options.seeds)
        for script in options.scripts
        for env_id in options.env_ids
    ]
    jobs = [job for job in jobs if not is_done(job, options.eval_episodes)]
    if options.print:
        for job in jobs:
            words = ["python", "benchmarks/run.py", "--workers", "1", "--scripts", job["script"]]
            words += ["--env-ids", job["env_id"], "--seeds", job["seed"]]
            words += ["--eval-episodes", str(options.eval_episodes)]
            print(shlex.join(words + ["--compile"] * options.compile))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []

    def work(job: dict) -> None:
        try:
            rows.append(row := run(job, options))
        except Exception as error:  # the other jobs go on
            print(error if type(error) is RuntimeError else f"{name_of(job)}: {error!r}")
            return
        numbers = f"training {row['training_return']:,}, evaluation {row['evaluation_return']:,}"
        done = f"[{len(rows)}/{len(jobs)}] {name_of(job)}"
        print(f"{done}: {numbers}, {row['seconds']} s", flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(work, jobs))
    if len(rows) < len(jobs):
        sys.exit(f"{len(jobs) - len(rows)} of {len(jobs)} runs failed; see above")


if __name__ == "__main__":
    main()
