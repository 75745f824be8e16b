"""Steps per second of the scripts on HalfCheetah-v4, on one core of the CPU, beside other code.

    pip install '.[benchmarks]'
    python benchmarks/speed.py --parts peers --sbx-python PATH/TO/VENV/bin/python
    python benchmarks/speed.py --parts against --against fe5c6a1
    python benchmarks/speed.py --parts torchrun start threads
    python benchmarks/report.py              # tables and figure from results/speed.csv

Parts; nothing else may run on the machine meanwhile:
    peers     each script, with and without --compile, beside Stable-Baselines3 or sb3-contrib and,
              with --sbx-python, SBX, at equal settings (EQUAL and PEERS below). --sbx-python is the
              Python of another environment, after `pip install sbx-rl 'gymnasium[mujoco]'`
    against   ppo, ddpg, td3 and sac beside their own code of an older commit
    torchrun  a2c.py in 1 and 2 processes, a3c.py with 1 and 2 workers; a step of the environment
              takes 1 ms more than Pendulum-v1's
    start     seconds until the first step and the first update; nothing compiled is cached
    threads   each script with 1 and 2 threads of PyTorch

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
from importlib.metadata import version
from pathlib import Path

from run import RESULTS, ROOT, commit, cpu, read

PATH = RESULTS / "speed.csv"
ENV_ID = "HalfCheetah-v4"
NUM_ENVS = 8  # of the on-policy scripts, and of the peers beside them
OFF_POLICY = ["ddpg", "td3", "sac"]
COMPILES = ["ppo", *OFF_POLICY]
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
PEERS = {
    "a2c": ("stable_baselines3.A2C", dict(n_steps=5)),
    "trpo": (
        "sb3_contrib.TRPO",
        dict(n_steps=256, batch_size=128, cg_max_steps=15, n_critic_updates=10),
    ),
    "ppo": ("stable_baselines3.PPO", dict(n_steps=256, batch_size=64, n_epochs=10)),
} | {
    script: (
        f"stable_baselines3.{script.upper()}",
        dict(batch_size=256, learning_starts=100, train_freq=1, gradient_steps=1)
        | dict(policy_kwargs={"net_arch": [256, 256]}),
    )
    for script in OFF_POLICY
}
# Rows of updates.csv: how many are warm-up, how many count, and the steps of each.
ROWS = {"reinforce": (2, 5, 3000), "reinforce_baseline": (2, 5, 3000), "a2c": (100, 400, 40)}
ROWS |= dict.fromkeys(("trpo", "ppo"), (2, 6, 2048)) | dict.fromkeys(OFF_POLICY, (1, 2, 1000))
TORCHRUN_ROWS = {"a2c": (5, 15, 1024), "a3c": (50, 250, 32)}  # at their default sizes
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


def steps_per_second(rows: list[dict[str, str]], warm_up: int, counted: int) -> float:
    """Of the `counted` rows of updates.csv that follow the `warm_up` first ones."""
    first, last = rows[warm_up - 1], rows[warm_up + counted - 1]
    steps, seconds = (float(last[name]) - float(first[name]) for name in ("step", "seconds"))
    return steps / seconds


def environment(threads: int = 1) -> dict[str, str]:
    """The variables of a measurement: so many threads, and no GPU."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def call(command: list[str], folder: str, cores: int = 1, **variables: str) -> str:
    """Runs a command in the folder, on so many cores; what it printed."""

    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):  # not on a Mac
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])

    env = environment(cores) | variables
    done = subprocess.run(
        command, cwd=folder, env=env, preexec_fn=pin, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def script_text(script: str, revision: str) -> str:
    """The text of a script at a commit, or the present one."""
    if not revision:
        return (ROOT / f"{script}.py").read_text()
    show = ["git", "-C", str(ROOT), "show", f"{revision}:{script}.py"]
    return subprocess.run(show, check=True, capture_output=True, text=True).stdout


def ours(job: dict) -> dict[str, float]:
    """Steps per second of a script, now or at an older commit."""
    script, text = job["script"], script_text(job["script"], job["revision"])
    rows = TORCHRUN_ROWS if job["part"] == "torchrun" else ROWS
    warm_up, counted, steps = rows[script]
    if job["quick"]:
        warm_up = counted = 1 if script in ROWS else 5
    words = [f"{script}.py", "--env-id", job["env_id"], "--eval-episodes", "0", *job["flags"]]
    words += ["--total-timesteps", str((warm_up + counted) * steps)]
    late = "--checkpoint-every" if "checkpoint_every:" in text else "--save-every"
    words += [late, "1000000000", "--num-threads", str(job["threads"])]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{script}.py").write_text(text)
        Path(folder, "slow.py").write_text(SLOW)
        call([sys.executable, *job["launcher"], *words], folder, job["cores"], PYTHONPATH=folder)
        (path,) = Path(folder).glob("runs/*/updates.csv")
        return {"steps/s": steps_per_second(read(path), warm_up, counted)}


def start_up(job: dict) -> dict[str, float]:
    """Seconds from the command until the run's clock starts, and from there to the first update."""
    steps = {"ppo": 2048, "a2c": 40}.get(job["script"], 102)  # td3.py updates in every second step
    words = [f"{job['script']}.py", "--eval-episodes", "0", *job["flags"]]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [
            sys.executable,
            str(ROOT / words[0]),
            *words[1:],
            "--total-timesteps",
            str(steps),
        ]
        call(command, folder, TORCHINDUCTOR_CACHE_DIR=f"{folder}/cache")
        wall = time.perf_counter() - start
        (path,) = Path(folder).glob("runs/*/summary.json")
        seconds = json.loads(path.read_text())["seconds"]
    return {"until the first step": wall - seconds, "until the first update": seconds}


def theirs(job: dict) -> dict:
    """What `learn` finds, in a process of its own, perhaps of another Python."""
    with tempfile.TemporaryDirectory() as folder:
        python = job["python"] or sys.executable
        plain = json.dumps({name: job[name] for name in ("script", "peer", "quick")})
        lines = call([python, __file__, "--learn", plain], folder)
    return json.loads(lines.splitlines()[-1])


def learn(job: dict) -> dict:
    """Steps per second of a class of Stable-Baselines3, sb3-contrib or SBX."""
    from stable_baselines3.common.env_util import make_vec_env

    script = job["script"]
    (package, kind), settings = job["peer"].split("."), PEERS[script][1]
    n = 1 if script in OFF_POLICY else NUM_ENVS
    algorithm = getattr(importlib.import_module(package), kind)
    model = algorithm("MlpPolicy", make_vec_env(ENV_ID, n, seed=1), seed=1, **settings)
    warm_up, counted, steps = (1, 1, 500) if job["quick"] else ROWS[script]
    model.learn(warm_up * steps)
    before, start = model.num_timesteps, time.perf_counter()
    model.learn(counted * steps, reset_num_timesteps=False)
    speed = (model.num_timesteps - before) / (time.perf_counter() - start)
    names = ["sbx-rl", "jax"] if package == "sbx" else ["torch"]
    names += ["stable-baselines3", "sb3-contrib"][: 2 if package == "sb3_contrib" else 1]
    return {"steps/s": speed, "versions": versions(*names)}


def versions(*names: str) -> str:
    numbers = [f"{name} {version(name)}" for name in (*names, "gymnasium", "mujoco")]
    return ", ".join([f"python {platform.python_version()}", *numbers])


def jobs(options: argparse.Namespace) -> list[dict]:
    """The measurements of the chosen parts in one turn."""
    found = []

    def add(part: str, script: str, variant: str, flags: str = "", measure=ours, **more) -> None:
        job = dict(part=part, script=script, variant=variant, env_id=ENV_ID, flags=flags.split())
        job |= dict(measure=measure, cores=1, threads=1, revision="", launcher=[], python="")
        found.append(job | dict(peer="", quick=options.quick) | more)

    def eager_and_compiled(part: str, script: str, label: str = "", **more) -> None:
        for graph in ("", " --compile")[: 1 + (script in COMPILES)]:
            name = "compile" if graph else "eager"
            add(part, script, f"{name}{label}", EQUAL[script] + graph, **more)

    scripts = [script for script in options.scripts if script in EQUAL]
    for script in scripts if "peers" in options.parts else ():
        eager_and_compiled("peers", script)
        if script in PEERS:
            peer = PEERS[script][0]
            add("peers", script, "SB3", measure=theirs, peer=peer)
        if script in COMPILES and options.sbx_python:
            python, peer = os.path.abspath(options.sbx_python), f"sbx.{script.upper()}"
            add("peers", script, "SBX", measure=theirs, peer=peer, python=python)
    for script in scripts if "against" in options.parts else ():
        if script in COMPILES:
            eager_and_compiled("against", script)
            eager_and_compiled("against", script, " then", revision=options.against)
    for n in (1, 2) if "torchrun" in options.parts else ():
        more = dict(env_id="slow:Slow-v0", cores=2)
        name = f"{n} process" + "es" * (n > 1)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
        add("torchrun", "a2c", name, launcher=launcher if n > 1 else [], **more)
        add("torchrun", "a3c", name, f"--num-workers {n}", **more)
    for script in ("a2c", *COMPILES) if "start" in options.parts else ():
        eager_and_compiled("start", script, measure=start_up)
    for script in scripts if "threads" in options.parts else ():
        for n in (1, 2):
            name = f"{n} thread" + "s" * (n > 1)
            add("threads", script, name, EQUAL[script], threads=n, cores=n)
    return found


def write(job: dict, turn: int, found: dict, fresh: set) -> None:
    """Adds the rows of a measurement; the first of a part and script replaces those there were."""
    place = job["part"], job["script"]
    rows = read(PATH)
    if place not in fresh:
        rows = [row for row in rows if (row["part"], row["script"]) != place]
    fresh.add(place)
    packages = found.pop("versions", None) or versions("torch")
    revision = job["revision"] or commit(f"{job['script']}.py") if not job["peer"] else ""
    for quantity, number in found.items():
        row = {name: job[name] for name in ("part", "script", "variant", "env_id")}
        row |= {"quantity": quantity, "turn": turn, "value": f"{number:.4g}"}
        rows.append(row | {"commit": revision, "versions": packages, "cpu": cpu()})
    with open(PATH.with_suffix(".tmp"), "w", newline="") as file:
        writer = csv.DictWriter(file, rows[-1], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(PATH.with_suffix(".tmp"), PATH)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["peers", "against", "torchrun", "start", "threads"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=["peers"])
    parser.add_argument("--scripts", nargs="+", choices=list(EQUAL), default=list(EQUAL))
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--sbx-python", help="the Python of an environment that has sbx-rl")
    parser.add_argument("--against", metavar="COMMIT", help="the older code of the part `against`")
    parser.add_argument(
        "--quick", action="store_true", help="only a try: short, nothing is written"
    )
    parser.add_argument("--learn", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.learn:
        print(json.dumps(learn(json.loads(options.learn))))
        return
    if "against" in options.parts and not options.against:
        parser.error("the part `against` needs --against COMMIT")
    todo, fresh = jobs(options), set()
    for turn in range(options.repeats):
        for count, job in enumerate(todo, 1):
            found = job["measure"](job)
            numbers = ", ".join(f"{x} {y:,.4g}" for x, y in found.items() if x != "versions")
            label = " ".join((job["part"], job["script"], job["variant"]))
            print(f"turn {turn + 1}, {count}/{len(todo)}: {label}: {numbers}", flush=True)
            if not options.quick:
                write(job, turn, found, fresh)


if __name__ == "__main__":
    main()
