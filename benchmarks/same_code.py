"""Does the present script do what the one did that gave a row of runs.csv?

    python benchmarks/same_code.py && python benchmarks/report.py

Plumbing, comments and messages change while results stand. So each version that gave a row, taken
from its commit, trains for a short while on three environments (off-policy two), beside the present
script with the same seed and flags. Only if all episodes, all parameters at the end, the optimizers'
state and the evaluation agree to the last bit, results/same_code.csv says "yes", and report.py no
longer lists the version's rows as those of another code. What stands there is not compared again.
Older versions evaluated on episodes of other seeds; here they are given the present ones. Of the
peers' file, sb3.py, the episodes and the evaluation are compared: it saves no parameters.

All without --compile: a graph that is put together in another way rounds otherwise, and the test
suite compares graphs with the plain update.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from run import RESULTS, ROOT, append, code_hash, path_of, read

# Episodes that end by themselves, by the time limit, and with discrete actions.
ENV_IDS = ["Hopper-v4", "Pendulum-v1", "CartPole-v1"]
STEPS = {"ddpg": 25_300, "td3": 25_300, "sac": 10_300}  # random ones first, then 300 updates
EVALUATION_SEEDS = "10**15 + self.args.seed", "(10**6 * self.args.seed + 999_999) % 2**32"
DEFAULT_STEPS = 20_000  # several rollouts


def versions() -> Iterator[tuple[str, str, str]]:
    """(script, commit, code) of the rows whose code is not the present one's."""
    found = set()
    for row in read(RESULTS / "runs.csv"):
        script, code = row["script"], row["code"]
        if (script, code) in found or code == present(script):
            continue
        found.add((script, code))
        yield script, row["commit"], code


def present(script: str) -> str:
    return code_hash(path_of(script).read_text())


def as_present(script: str) -> set[str]:
    """The codes of the script that train as it does now: its own, and those that were compared."""
    now = present(script)
    return {now} | {
        row["code"]
        for row in read(RESULTS / "same_code.csv")
        if (row["script"], row["present"], row["same"]) == (script, now, "yes")
    }


def flags(script: str, env_id: str) -> list[str]:
    words = ["--env-id", env_id, "--seed", "5", "--eval-episodes", "2", "--total-timesteps"]
    words.append(str(STEPS.get(script.removeprefix("sb3_"), DEFAULT_STEPS)))
    if script == "a3c":
        words += ["--num-workers", "1"]  # the order of several workers' pushes is chance
    return words


def train(text: str, script: str, env_id: str) -> tuple[list, dict, list]:
    """Episodes, the checkpoint's state, and the evaluation's returns of a short run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{script}.py").write_text(text)
        command = [sys.executable, "-W", "ignore", f"{script}.py"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*command, *flags(script, env_id)],
            cwd=folder, env=environment, check=True, capture_output=True,
        )  # fmt: skip
        (run,) = Path(folder).glob("runs/*")
        with open(run / "episodes.csv") as file:
            episodes = [(x["step"], x["return"], x["length"]) for x in csv.DictReader(file)]
        summary = json.loads((run / "summary.json").read_text())
        if script.startswith("sb3_"):
            return episodes, {}, [summary["evaluation_return"], summary["evaluation_std"]]
        state = torch.load(run / "checkpoint.pt", weights_only=True)["state"]
        return episodes, state, summary["evaluation_returns"]


def equal(one: object, other: object) -> bool:
    """Equal to the bit, tensors and containers of them."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and equal(
            list(one.values()), list(other.values())
        )  # fmt: skip
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def main() -> None:
    path, now = RESULTS / "same_code.csv", {}
    known = {(row["script"], row["code"], row["present"]) for row in read(path)}
    for script, commit, code in versions():
        row = {"script": script, "code": code, "present": present(script)}
        if tuple(row.values()) in known:
            continue
        path_then = path_of(script).relative_to(ROOT)
        show = ["git", "-C", str(ROOT), "show", f"{commit}:{path_then}"]
        text = subprocess.run(show, check=True, capture_output=True, text=True).stdout
        assert code_hash(text) == code, f"{commit} has another {script}.py than the row says"
        text = text.replace(*EVALUATION_SEEDS)
        verdicts = []
        for env_id in ENV_IDS[: 2 if script.removeprefix("sb3_") in STEPS else 3]:
            key = script, env_id
            if key not in now:
                now[key] = train(path_of(script).read_text(), *key)
            verdicts.append(equal(train(text, *key), now[key]))
        row["same"] = "yes" if all(verdicts) else "no"
        append(path, [row])
        print(f"{script}.py of {commit} and now:", *verdicts, flush=True)


if __name__ == "__main__":
    main()
