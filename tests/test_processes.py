"""a2c.py and ppo.py in several processes, as torchrun starts them. [AC-07b]"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TESTS, TINY, environment, flags, only_folder, table
from torch import distributed, multiprocessing, nn

import a2c
import ppo

SCRIPTS = ["a2c", "ppo"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
SETTINGS = {  # with one minibatch the samples of an update do not depend on the order
    "a2c": TINY["a2c"] | dict(num_envs=4, eval_episodes=0, learning_rate=1e-3),
    "ppo": TINY["ppo"] | dict(num_envs=4, eval_episodes=0, learning_rate=1e-3, num_minibatches=1),
}


STARTED = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()  # torchrun ends its processes
            process.wait(60)


def start(script: str, *launcher: str, cwd: Path, variables: dict = {}, **settings):
    """Starts tests/ranks.py with a script's flags, behind a launcher such as torchrun."""
    cwd.mkdir(exist_ok=True)
    environ = environment() | dict(OMP_NUM_THREADS="1") | variables
    environ["PYTHONPATH"] += os.pathsep + str(ROOT)
    process = subprocess.Popen(
        [*launcher, str(TESTS / "ranks.py"), script, *flags(settings)],
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def output_of(process: subprocess.Popen) -> str:
    """What it printed; it has to end well."""
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    return printed


def assert_equal(one, other) -> None:
    """The same state dictionaries, to the bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# ── AC-07b ────────────────────────────────────────────────────────────────────────────────────────


def gradient_of_a_rank(rank: int, folder: Path) -> None:
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(()))]
    parameters[0].grad = torch.arange(6.0).reshape(2, 3) * (1 + 2 * rank)  # · 1 and · 3: mean · 2
    parameters[1].grad = torch.tensor([10.0, -4.0][rank])
    for script in (a2c, ppo):
        gradients = [parameter.grad.clone() for parameter in parameters]
        script.average_gradients(parameters)
        assert parameters[0].grad.tolist() == [[0, 2, 4], [6, 8, 10]]
        assert parameters[1].grad.tolist() == 3
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        both = script.of_all(torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (1 + rank))
        assert both.tolist() == [[1, 2], [3, 4], [2, 4], [6, 8]]
        assert script.of_all_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    distributed.destroy_process_group()


def test_average_of_two_processes(tmp_path):
    """AC-07b, by hand: the mean of two processes' gradients, and the samples of both."""
    multiprocessing.spawn(gradient_of_a_rank, (tmp_path,), nprocs=2)


@pytest.mark.parametrize("script", [a2c, ppo])
def test_alone_nothing_happens(script):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    gradient = parameter.grad
    script.average_gradients([parameter])
    assert parameter.grad is gradient and gradient.tolist() == [1, 2]
    assert script.of_all(gradient) is gradient
    assert script.of_all_objects("alone") == ["alone"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_processes_are_one_with_all_environments(script, tmp_path):
    """The same steps, episodes, statistics and parameters as one process that plays them all."""
    settings = SETTINGS[script] | dict(env_id="Pendulum-v1", total_timesteps=1024)
    if script == "ppo":  # ends about half of the updates early; the ranks must agree when
        settings |= dict(update_epochs=4, target_kl=5e-4)
    same = {"SAME_SAMPLES": "1"}
    runs = [
        start(script, *TORCHRUN, "--standalone", cwd=tmp_path / "two", variables=same, **settings),
        start(script, sys.executable, cwd=tmp_path / "one", variables=same, **settings),
    ]
    for process in runs:
        output_of(process)
    first, second = (torch.load(tmp_path / f"two/rank{rank}.pt") for rank in (0, 1))
    alone = torch.load(tmp_path / "one/rank0.pt")
    for part in ("actor", "critic", "optimizer"):
        assert_equal(first[part], second[part])
    for rank in (first, second):  # a thread of the group that is left may abort the process
        assert not [thread for thread in rank["threads"] if "gloo" in thread]
    steps = {float(entry["step"]) for entry in first["optimizer"]["state"].values()}
    assert steps == {float(entry["step"]) for entry in alone["optimizer"]["state"].values()}
    assert steps == {8} if script == "a2c" else 8 < steps.pop() < 32
    folder, expected_folder = only_folder(tmp_path / "two"), only_folder(tmp_path / "one")
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 1024
    assert_equal(checkpoint["state"]["actor"], second["actor"])
    assert alone["critic"]["obs_norm.count"] == 1024
    for part in ("actor", "critic"):
        torch.testing.assert_close(first[part], alone[part], rtol=1e-3, atol=1e-4)
    episodes, expected = (
        sorted(row["return"] for row in table(path / "episodes.csv"))
        for path in (folder, expected_folder)
    )
    assert len(episodes) == 4  # each environment has played one episode of 200 steps
    assert episodes == pytest.approx(expected, rel=1e-3)
    updates, expected = (table(path / "updates.csv") for path in (folder, expected_folder))
    assert [row["step"] for row in updates] == [row["step"] for row in expected]


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_rank_plays_its_own_episodes(script, tmp_path):
    """Trap 7: environments 0 and 1 on rank 0, 2 and 3 on rank 1; and other noise in the actions."""
    settings = SETTINGS[script] | dict(env_id="Pendulum-v1", total_timesteps=128, seed=3)
    output_of(start(script, *TORCHRUN, "--standalone", cwd=tmp_path, **settings))
    rollouts = [torch.load(tmp_path / f"rank{rank}.pt")["rollout"] for rank in (0, 1)]
    env = ppo.make_env("Pendulum-v1")
    for n in range(4):
        obs, _ = env.reset(seed=3 * 10**6 + n)
        observations, actions, *_ = rollouts[n // 2]
        assert observations[0, n % 2].tolist() == obs.tolist()
    # The first policy's mean is almost 0 everywhere: what differs is the noise.
    noise, others = (rollout[1] for rollout in rollouts)
    assert ((noise - others).abs() > 0.01).all(1).float().mean() > 0.9


@pytest.mark.parametrize("script", SCRIPTS)
def test_environments_must_divide(script, tmp_path):
    settings = SETTINGS[script] | dict(num_envs=3)
    process = start(script, *TORCHRUN, "--standalone", cwd=tmp_path, **settings)
    assert "num_envs is 3; 2 processes cannot share them" in process.communicate(timeout=120)[0]
    assert process.returncode and not list(tmp_path.glob("runs/*"))


def test_arguments_must_agree(tmp_path):
    """As after a typing error on the second machine."""
    endpoint = ["--nnodes", "2", "--nproc-per-node", "1", "--master-port", "29871"]
    processes = [
        start(
            "ppo", *TORCHRUN[:3], *endpoint, "--node-rank", str(rank), cwd=tmp_path / str(rank),
            **SETTINGS["ppo"] | dict(gamma=0.9 + rank / 100),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in processes:
        assert "gamma differs: [0.9, 0.91], rank by rank" in process.communicate(timeout=120)[0]
        assert process.returncode


def test_compiled_in_two_processes(tmp_path):
    """One graph of the update, with what the processes say to each other: the same numbers."""
    settings = SETTINGS["a2c"] | dict(env_id="Pendulum-v1", total_timesteps=256)
    kept = {}
    for words in ({}, {"compile": True}):
        cwd = tmp_path / str(len(kept))
        output_of(start("a2c", *TORCHRUN, "--standalone", cwd=cwd, **settings, **words))
        kept[len(kept)] = [torch.load(cwd / f"rank{rank}.pt") for rank in (0, 1)]
    eager, compiled = kept.values()
    for part in ("actor", "critic"):
        assert_equal(compiled[0][part], compiled[1][part])
        torch.testing.assert_close(compiled[0][part], eager[0][part], rtol=1e-4, atol=1e-5)


# ── Failures ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rank, fate", [(1, "kill"), (0, "kill"), (1, "raise")])
def test_a_rank_that_dies_ends_the_job(rank, fate, tmp_path):
    """With an error, in less than torchrun's 30 seconds of patience; and the run can go on."""
    settings = SETTINGS["ppo"] | dict(env_id="Pendulum-v1", total_timesteps=10**6)
    fates = {f"RANK_{rank}": fate}
    process = start("ppo", *TORCHRUN, "--standalone", cwd=tmp_path, variables=fates, **settings)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode
    assert "forcefully exiting" not in printed  # nobody had to be killed after those 30 seconds
    assert ("Signal 9 (SIGKILL)" if fate == "kill" else "this rank was told to fail") in printed
    folder = only_folder(tmp_path)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] >= 128
    more = dict(resume=folder.relative_to(tmp_path), total_timesteps=512)
    output_of(start("ppo", sys.executable, cwd=tmp_path, **more))  # alone this time
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 512


@pytest.mark.parametrize(
    "script, number, to", [("ppo", signal.SIGINT, "torchrun"), ("a2c", signal.SIGTERM, "rank 1")]
)
def test_interrupt_saves_and_the_ranks_go_on(script, number, to, tmp_path):
    """Whoever gets the signal: torchrun, which passes it on, or the follower on another machine."""
    settings = SETTINGS[script] | dict(env_id="Pendulum-v1", total_timesteps=10**6)
    process = start(script, *TORCHRUN, "--standalone", cwd=tmp_path, **settings)
    deadline = time.time() + 90
    while time.time() < deadline and process.poll() is None:
        files = list(tmp_path.glob("runs/*/updates.csv"))
        if files and len(files[0].read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    if to == "torchrun":
        process.send_signal(number)
    else:
        os.kill(int((tmp_path / "pid1").read_text()), number)
    printed = process.communicate(timeout=60)[0]
    folder = only_folder(tmp_path)
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert f"Stopped and saved at step {step}" in printed and step > 0 and step % 128 == 0
    assert (tmp_path / "rank1.pt").exists()  # it left the loop with rank 0, and has not failed
    rows = len(table(folder / "updates.csv"))
    assert rows == step // 128
    more = dict(resume=folder.relative_to(tmp_path), total_timesteps=step + 256)
    output_of(start(script, *TORCHRUN, "--standalone", cwd=tmp_path, **more))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert_equal(first["actor"], second["actor"])
    assert_equal(first["optimizer"], second["optimizer"])
    assert first["folder"] == second["folder"] == str(folder.relative_to(tmp_path))
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == step + 256
    assert len(table(folder / "updates.csv")) == rows + 2


# ── Two machines ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them, as if they were two machines."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    names = [f"pg{os.getpid()}{letter}" for letter in "ab"]
    cables = [f"{name}-e" for name in names]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for number, (name, cable) in enumerate(zip(names, cables), 1):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"10.199.7.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    else:
        yield list(zip(names, cables))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_two_machines(hosts, tmp_path):
    """torchrun's own --nnodes and --rdzv-endpoint, one process on each machine."""
    settings = SETTINGS["ppo"] | dict(env_id="Pendulum-v1", total_timesteps=512)
    processes = []
    for number, (name, cable) in enumerate(hosts):
        launcher = [
            *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"),
            *("--rdzv-id", "test", "--rdzv-endpoint", "10.199.7.1:29400"),
            *("--local-addr", f"10.199.7.{number + 1}", "--rdzv-conf", f"is_host={1 - number}"),
        ]
        folder, variables = tmp_path / name, {"GLOO_SOCKET_IFNAME": cable}
        processes.append(start("ppo", *launcher, cwd=folder, variables=variables, **settings))
    for process in processes:
        output_of(process)
    files = [path for name, _ in hosts for path in (tmp_path / name).glob("rank*.pt")]
    first, second = map(torch.load, files)
    assert {path.name for path in files} == {"rank0.pt", "rank1.pt"}
    for part in ("actor", "critic", "optimizer"):
        assert_equal(first[part], second[part])
    assert len(list(tmp_path.glob("*/runs/*"))) == 1  # rank 0 has written, the other has not
