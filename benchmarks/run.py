"""Scripts × environments × seeds, each as one plain command; results as small CSV files.

    python benchmarks/run.py --scripts ppo trpo --env-ids HalfCheetah-v4 --seeds 301 302 303
    python benchmarks/run.py ... --print        only prints the jobs, one command a line
    python benchmarks/run.py --again FOLDER     every run of results/runs.csv anew, results in FOLDER

results/runs.csv has one row for each finished run; results/curves/<script>__<env_id>.csv the returns
on the way, one row for each hundredth of the steps. What stands in runs.csv is not run again, and a
run that was broken off goes on from its checkpoint, so an interrupted benchmark goes on where it was.
The lines that --print prints may be run by anything: xargs, a cluster, other machines, all at once
if they see the same folder: results are written under a lock.
"""

import argparse
import ast
import csv
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / "runs"  # not in the repository: the folders of runs that go on
KEY = "script", "env_id", "seed", "flags"
CURVE_POINTS = 100
LOCK = threading.Lock()  # fcntl's belong to processes, not to threads

# Flags of a script on an environment, where it wants others than the defaults, which are for MuJoCo.
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
    **{
        (script, env_id): "--total-timesteps 200000"
        for script in ("ddpg", "td3", "sac")
        for env_id in ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")
    },
    **{
        (script, "Pendulum-v1"): "--total-timesteps 20000 --learning-starts 1000"
        for script in ("ddpg", "td3", "sac")
    },
}


def flags_of(script: str, env_id: str) -> str:
    """The flags of a job; a peer has the same number of steps, and its own settings."""
    flags = FLAGS.get((script.removeprefix("sb3_"), env_id), "")
    if script.startswith("sb3_"):
        return " ".join(re.findall(r"--total-timesteps \d+", flags))
    return flags


def path_of(script: str) -> Path:
    """A script of ours, or the file that runs one of Stable-Baselines3's algorithms."""
    return ROOT / ("benchmarks/sb3.py" if script.startswith("sb3_") else f"{script}.py")


def code_hash(text: str) -> str:
    """A digest of what a script does: comments, docstrings and layout do not change it."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            node.body[0].value.value = ""
    return hashlib.sha256(repr(plain(tree)).encode()).hexdigest()[:10]


def plain(node: object) -> object:
    """A syntax tree in lists, without empty fields: newer versions of Python have more of them."""
    if isinstance(node, ast.AST):
        fields = [(name, plain(x)) for name, x in ast.iter_fields(node) if x not in (None, [])]
        return type(node).__name__, fields
    return [plain(x) for x in node] if isinstance(node, list) else node


def commit(scripts: list[str]) -> str:
    """The commit that the results belong to; refuses scripts that differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True
    )
    if head.returncode:
        sys.exit(f"{ROOT} is not a git repository with a commit; results belong to a commit")
    for path in map(path_of, scripts):  # comments, as the figures in a header, may differ
        name = f"HEAD:{path.relative_to(ROOT)}"
        known = subprocess.run([*git, "show", name], check=False, capture_output=True, text=True)
        if known.returncode or code_hash(known.stdout) != code_hash(path.read_text()):
            sys.exit(f"{path}: there are changes that are not committed; commit them first")
    return head.stdout.strip()


def cpu() -> str:
    """The processor's name and the number of cores."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path) as file:
        return list(csv.DictReader(file))


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time, on all machines that share the folder (NFS knows this kind of lock)."""
    WORK.mkdir(parents=True, exist_ok=True)
    with LOCK, open(WORK / "lock", "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(name: str) -> Iterator[int]:
    """The lock of a job, a file descriptor. A child that inherits it holds it as long as it lives.

    Raises:
        RuntimeError: if another process has the job of this name in hand.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / f"{name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(f"{name}: another process is running this") from error
        yield file.fileno()


def append(path: Path, rows: list[dict]) -> None:
    """Adds rows to a CSV file.

    Raises:
        RuntimeError: if the file's last line has no end, as after a full disk.
    """
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        raise RuntimeError(f"{path}: its last line is cut off; take it out, and run this again")
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


def thinned(episodes: list[dict[str, str]], total: int) -> list[tuple[int, float]]:
    """(step, mean return of the episodes that ended in the hundredth of the steps before it)."""
    bins = {}
    for row in episodes:
        index = min(int(row["step"]) * CURVE_POINTS // (total + 1), CURVE_POINTS - 1)
        bins.setdefault(index, []).append(float(row["return"]))
    return [
        ((index + 1) * total // CURVE_POINTS, round(statistics.mean(returns), 1))
        for index, returns in sorted(bins.items())
    ]


def folder_of(name: str, code: str, words: list[str]) -> Path:
    """Where a job runs: what was begun by another script or with other flags is not gone on with."""
    digest = hashlib.sha256(f"{code} {shlex.join(words)}".encode()).hexdigest()[:10]
    return WORK / f"{name}__{digest}"


def run(
    job: dict, text: str, code: str, revision: str, compiled: bool, eval_episodes: int, lock: int
) -> dict:
    """Runs a job, or what is left of it, on a copy of the script; writes and returns its row.

    A run that diverged is not tried again: with other random numbers it might not, and would count.

    Raises:
        RuntimeError: if the run failed, with what it printed.
    """
    script = job["script"]
    name = name_of(job)
    words = ["--env-id", job["env_id"], "--seed", job["seed"], *job["flags"].split()]
    words += ["--eval-episodes", str(eval_episodes)]
    if compiled and "compile: bool" in text:
        words.append("--compile")
    folder = folder_of(name, code, words)
    folder.mkdir(parents=True, exist_ok=True)
    diverged = folder / "diverged.txt"
    if diverged.exists():
        raise RuntimeError(f"{name}: it diverged, see {diverged}")
    (folder / f"{script}.py").write_text(text)
    checkpoints = sorted(folder.glob("runs/*/checkpoint.pt"))
    resume = ["--resume", str(checkpoints[-1].parent.relative_to(folder))] if checkpoints else []
    command = [sys.executable, "-W", "ignore", f"{script}.py", *resume, *words]
    done = subprocess.run(
        command, check=False, cwd=folder, capture_output=True, text=True, pass_fds=[lock]
    )
    if done.returncode:
        if "FloatingPointError" in done.stderr:
            diverged.write_text(done.stderr)
        raise RuntimeError(f"{name}: {' '.join(command)}\n{done.stdout}{done.stderr}")
    run_folder = sorted(folder.glob("runs/*/summary.json"))[-1].parent
    summary = json.loads((run_folder / "summary.json").read_text())
    if summary["training_return"] is None or summary["evaluation_return"] is None:
        raise RuntimeError(f"{name}: no episode has ended, in training or in the evaluation")
    versions = json.loads((run_folder / "args.json").read_text())["versions"]
    row = job | {
        "steps": summary["step"],
        "training_return": round(summary["training_return"], 1),
        "evaluation_return": round(summary["evaluation_return"], 1),
        "evaluation_std": round(summary["evaluation_std"], 1),
        "seconds": round(summary["seconds"]),
        "resumed": "yes" if resume else "no",  # with several environments another run than without
        "commit": revision,
        "code": code,
        "command": shlex.join(["python", f"{script}.py", *words]),
        "versions": ", ".join(f"{package} {number}" for package, number in versions.items()),
        "cpu": cpu(),
    }
    curve = thinned(read(run_folder / "episodes.csv"), summary["step"])
    path = RESULTS / "curves" / f"{script}__{job['env_id']}.csv"
    with locked():
        # A kill may have come between the curve and its row in runs.csv.
        points = [point for point in read(path) if point["seed"] != job["seed"]]
        points += [{"seed": job["seed"], "step": step, "return": value} for step, value in curve]
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        append(temporary, points)
        temporary.replace(path)
        append(RESULTS / "runs.csv", [row])
    shutil.rmtree(folder)
    return row


def name_of(job: dict) -> str:
    return "__".join(job[part] for part in KEY[:3])


def is_done(job: dict, eval_episodes: int) -> bool:
    """Whether runs.csv has a row of this job, with as many episodes of evaluation."""
    return any(
        all(row[x] == job[x] for x in KEY)
        and f"--eval-episodes {eval_episodes} " in row["command"] + " "
        for row in read(RESULTS / "runs.csv")
    )


def main() -> None:
    global RESULTS, WORK
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = sorted(path.stem for path in ROOT.glob("*.py"))
    known += [f"sb3_{name}" for name in ("a2c", "ddpg", "ppo", "sac", "td3", "trpo")]
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--scripts", nargs="+", choices=known)
    which.add_argument("--again", type=Path, metavar="FOLDER", help="the rows of runs.csv anew")
    parser.add_argument(
        "--env-ids", nargs="+", default=["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"]
    )
    # Not 1, 2, 3: settings were tuned on some of the low seeds (results/trials.csv).
    parser.add_argument("--seeds", nargs="+", default=["301", "302", "303"])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--compile", action="store_true", help="for the scripts that have it")
    parser.add_argument(
        "--eval-episodes", type=int, default=100, help="the tables show runs with 100 of them only"
    )
    parser.add_argument("--print", action="store_true", help="print the jobs, run nothing")
    options = parser.parse_args()
    compiled = {}  # a repeated job's own, where it had it
    if options.again:
        if options.print:
            parser.error("--again runs its jobs itself; --print goes with --scripts")
        rows, RESULTS, WORK = read(RESULTS / "runs.csv"), options.again, options.again / "runs"
        jobs = [{part: row[part] for part in KEY} for row in rows]
        compiled = {(*job.values(),): "--compile" in row["command"] for job, row in zip(jobs, rows)}
        options.scripts = sorted({job["script"] for job in jobs})
    else:
        jobs = [
            {"script": script, "env_id": env_id, "seed": seed, "flags": flags_of(script, env_id)}
            for seed in dict.fromkeys(options.seeds)
            for script in options.scripts
            for env_id in options.env_ids
        ]
    texts = {script: path_of(script).read_text() for script in options.scripts}
    codes = {script: code_hash(text) for script, text in texts.items()}
    jobs = [job for job in jobs if not is_done(job, options.eval_episodes)]
    if options.print:
        for job in jobs:
            words = ["python", "benchmarks/run.py", "--workers", "1", "--scripts", job["script"]]
            words += ["--env-ids", job["env_id"], "--seeds", job["seed"]]
            words += ["--eval-episodes", str(options.eval_episodes)]
            print(shlex.join(words + ["--compile"] * options.compile))
        return
    revision, printing, finished, start = commit(options.scripts), threading.Lock(), [], time.time()

    def work(job: dict) -> None:
        try:
            script = texts[job["script"]], codes[job["script"]]
            with claimed(name_of(job)) as lock:
                if is_done(job, options.eval_episodes):  # in the meantime, by another process
                    return
                graph = compiled.get((*job.values(),), options.compile)
                row = run(job, *script, revision, graph, options.eval_episodes, lock)
        except Exception as error:  # the others go on
            print(
                error if type(error) is RuntimeError else f"{name_of(job)}: {error!r}", flush=True
            )
            return
        with printing:
            finished.append(row)
            left = (time.time() - start) / len(finished) * (len(jobs) - len(finished)) / 60
            print(
                f"[{len(finished)}/{len(jobs)}] {row['script']} {row['env_id']} seed {row['seed']}: "
                f"training {row['training_return']:,}, evaluation {row['evaluation_return']:,}, "
                f"{row['seconds']} s; about {left:.0f} min left",
                flush=True,
            )

    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(work, jobs))
    if missing := [job for job in jobs if not is_done(job, options.eval_episodes)]:
        sys.exit(f"{len(missing)} of {len(jobs)} runs failed; see above")


if __name__ == "__main__":
    main()
