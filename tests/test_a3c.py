"""a3c.py: what pull and push do, and what happens to several processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, environment, only_folder, probe, run, start, table

import a2c
import a3c

SETTINGS = TINY["a3c"] | dict(eval_episodes=0)
OPTIMIZER = dict(betas=(0.0, 0.99), eps=1e-5, fused=True)  # as in train, which starts processes


class Pipe(list):
    send = list.append


def one_worker(args: a3c.Args) -> tuple[a3c.Shared, Pipe]:
    """What train does with one worker, in this process, where a test can look."""
    torch.manual_seed(args.seed)
    env = a3c.make_env(args.env_id)
    actor, critic = (
        a3c.Actor(env.observation_space, env.action_space),
        a3c.Critic(env.observation_space),
    )
    parameters = a3c.parameters_of(actor, critic)
    optimizer = torch.optim.Adam(parameters, args.learning_rate, **OPTIMIZER)
    shared, pipe = a3c.Shared(actor, critic, optimizer), Pipe()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    a3c.work(args, 10**6 * args.seed, shared, threading.Lock(), threading.Event(), pipe)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return shared, pipe


def networks(seed: int) -> tuple[a3c.Actor, a3c.Critic]:
    torch.manual_seed(seed)
    env = a3c.make_env("Pendulum-v1")
    return a3c.Actor(env.observation_space, env.action_space), a3c.Critic(env.observation_space)


def test_a2c_and_a3c_have_the_optimizer_of_these_tests():
    line = "    settings = dict(betas=(0.0, 0.99), eps=1e-5, fused=True)\n"
    assert eval(line.split("=", 1)[1]) == OPTIMIZER
    for module in (a2c, a3c):
        assert line in Path(module.__file__).read_text()


# ── AC-07c ────────────────────────────────────────────────────────────────────────────────────────


def test_push_is_one_step_of_the_shared_optimizer():
    """θ moves by one step along the worker's own gradient, though θ' is another point by then.

    Worked out here in float64: v ← 0.99 v + 0.01 g², θ ← θ − lr g / (√(v / (1 − 0.99^t)) + ε).
    """
    actor, critic = networks(0)
    parameters = a3c.parameters_of(actor, critic)
    shared = a3c.Shared(actor, critic, torch.optim.Adam(parameters, 1.0, **OPTIMIZER))
    theta = [parameter.detach().double() for parameter in parameters]
    v = [torch.zeros_like(x) for x in theta]
    workers = [networks(seed) for seed in (1, 2)]  # θ' of two workers, neither equal to θ
    for push, learning_rate in enumerate((0.1, 0.01, 0.01)):
        own = workers[push % 2]
        own_parameters = a3c.parameters_of(*own)
        before = [parameter.detach().clone() for parameter in own_parameters]
        gradients = [torch.randn_like(parameter) for parameter in own_parameters]
        for parameter, gradient in zip(own_parameters, gradients):
            parameter.grad = gradient.clone()
        shared.push(*own, learning_rate)
        for i, gradient in enumerate(gradients):
            g = gradient.double()
            v[i] = 0.99 * v[i] + 0.01 * g**2
            root = (v[i] / (1 - 0.99 ** (push + 1))).sqrt()
            theta[i] = theta[i] - learning_rate * g / (root + 1e-5)
            torch.testing.assert_close(parameters[i].double(), theta[i], rtol=1e-5, atol=1e-6)
            assert parameters[i].grad is None and own_parameters[i].grad is None  # trap 19
            assert torch.equal(own_parameters[i], before[i])  # only pull moves θ'


def test_pull_copies_parameters_and_statistics():
    actor, critic = networks(0)
    shared = a3c.Shared(actor, critic, torch.optim.Adam(a3c.parameters_of(actor, critic), 1.0))
    critic.return_norm.update(torch.randn(5) + 3)
    own = networks(1)
    shared.pull(*own)
    for mine, theirs in zip(own, (actor, critic)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value)
            assert mine.state_dict()[name].data_ptr() != value.data_ptr()


def test_all_is_in_shared_memory():
    """Parameters, statistics and the optimizer's averages: else each worker would have its own."""
    actor, critic = networks(0)
    optimizer = torch.optim.Adam(a3c.parameters_of(actor, critic), 1.0)
    shared = a3c.Shared(actor, critic, optimizer)
    tensors = [*actor.state_dict().values(), *critic.state_dict().values(), shared.step]
    tensors += [shared.claimed, *(x for state in optimizer.state.values() for x in state.values())]
    assert len(tensors) > 40 and all(tensor.is_shared() for tensor in tensors)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_one_worker_is_a2c_with_one_environment(monkeypatch, env_id):
    """With nobody beside it a pulled θ' is never out of date: the same run to the bit."""
    settings = dict(
        learning_rate=1e-3, env_id=env_id, total_timesteps=320, num_steps=16, eval_episodes=0
    )
    folder = a2c.train(a2c.Args(num_envs=1, **settings))
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    args = a3c.Args(num_workers=1, **settings)
    assert args.max_grad_norm == a2c.Args().max_grad_norm
    states, play, init = [], a3c.play, a3c.Shared.__init__

    def spy_init(shared, *parts):
        init(shared, *parts)
        states.append(torch.get_rng_state())

    def spy_play(*parts):  # a2c's random numbers go on where the networks' initialisation ended
        if states:
            torch.set_rng_state(states.pop())
        return play(*parts)

    monkeypatch.setattr(a3c.Shared, "__init__", spy_init)
    monkeypatch.setattr(a3c, "play", spy_play)
    shared, pipe = one_worker(args)
    assert pipe[-1] is None and [report[0] for report in pipe[:-1]] == list(range(16, 321, 16))
    for name, network in (("actor", shared.actor), ("critic", shared.critic)):
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[name][key]), key
    rows = table(folder / "updates.csv")
    for row, (_, _, metrics) in zip(rows, pipe):
        for name, value in metrics.items():
            assert float(f"{value:.7g}") == row[name], name


def test_no_gradient_is_left_over(monkeypatch):
    """Trap 19: the optimizer clears the shared gradients only, so the worker must clear its own."""
    passes, backward, own = [], torch.Tensor.backward, []
    init = a3c.Critic.__init__

    def spy_init(self, *spaces):
        init(self, *spaces)
        own.append(self)

    def spy(loss, *args, **more):
        assert len(own) == 2  # the shared one and the worker's
        assert all(parameter.grad is None for critic in own for parameter in critic.parameters())
        passes.append(loss)
        return backward(loss, *args, **more)

    monkeypatch.setattr(a3c.Critic, "__init__", spy_init)
    monkeypatch.setattr(torch.Tensor, "backward", spy)
    one_worker(a3c.Args(env_id="Pendulum-v1", total_timesteps=64, num_steps=16))
    assert len(passes) == 4


# ── Processes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [1, 3])
def test_every_step_is_counted_once(workers):
    """Each push has a row of its own, in order; the last rollout may go beyond the total."""
    settings = SETTINGS | dict(total_timesteps=500, num_workers=workers)
    folder = a3c.train(a3c.Args(env_id=probe("a3c", "TimeLimit"), **settings))
    assert [row["step"] for row in table(folder / "updates.csv")] == list(range(32, 513, 32))
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 512
    state = checkpoint["state"]
    assert state["critic"]["obs_norm.count"] == 512 == state["actor"]["obs_norm.count"]
    for entry in state["optimizer"]["state"].values():
        assert entry["step"] == 512 // 32  # one step of the shared optimizer for each push


def children(pid: int) -> list[int]:
    """The workers among a process's children: those that spawn started, without its tracker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
            command = path.with_name("cmdline").read_text()
        except OSError:
            continue
        if int(text.rsplit(")", 1)[1].split()[1]) == pid and "spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def ends(pids: list[int]) -> bool:
    def alive(pid: int) -> bool:
        path = Path(f"/proc/{pid}/stat")
        return path.exists() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"

    deadline = time.time() + 20
    while any(alive(pid) for pid in pids) and time.time() < deadline:
        time.sleep(0.1)
    return not any(alive(pid) for pid in pids)


def under_way(tmp_path, process) -> Path:
    """Waits until the run has logged some updates; returns its folder."""
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None:
        files = list(tmp_path.glob("runs/*/updates.csv"))
        if files and len(files[0].read_text().splitlines()) > 12:
            return files[0].parent
        time.sleep(0.1)
    raise AssertionError(process.communicate()[0])


def test_without_a_main_guard(tmp_path):
    """Each worker imports the script that called train: it says so, and starts no run of its own."""
    settings = dict(env_id="CartPole-v1", **SETTINGS)
    (tmp_path / "mine.py").write_text(f"import a3c\na3c.train(a3c.Args(**{settings}))\n")
    path = os.pathsep.join([str(ROOT), environment()["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=environment() | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1 and len(list(tmp_path.glob("runs/*"))) == 1
    assert 'train below `if __name__ == "__main__":`' in done.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_worker(tmp_path):
    """It ends the run with an error and a checkpoint, not with a hang; and the run can go on."""
    settings = SETTINGS | dict(total_timesteps=100_000)
    process = start("a3c", env_id=probe("a3c", "Slow"), cwd=tmp_path, **settings)
    folder = under_way(tmp_path, process)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker was killed, or crashed" in output and "--resume" in output
    assert ends(workers)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert (
        f"holds step {saved}" in output and saved == table(folder / "updates.csv")[-1]["step"] > 0
    )
    total = saved + 128
    done = run("a3c", "--resume", str(folder), "--total-timesteps", str(total), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [row["step"] for row in table(folder / "updates.csv")]
    assert steps == list(range(32, total + 1, 32))
    assert json.loads((folder / "summary.json").read_text())["step"] == total


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_stays(tmp_path, number):
    """However the main process is stopped, its workers end too."""
    settings = SETTINGS | dict(total_timesteps=100_000)
    process = start("a3c", env_id=probe("a3c", "Slow"), cwd=tmp_path, **settings)
    folder = under_way(tmp_path, process)
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert ends(workers)
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "Stopped and saved" in output
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
        assert saved == table(folder / "updates.csv")[-1]["step"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number, early", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_signal_to_all_processes(tmp_path, number, early):
    """As Ctrl-C in a terminal, or a cluster's end of the job: only the main process acts on it,
    even while the workers still import their packages."""
    settings = SETTINGS | dict(total_timesteps=100_000)
    process = start(
        "a3c", env_id=probe("a3c", "Slow"), cwd=tmp_path, start_new_session=True, **settings
    )
    if early:
        deadline = time.time() + 60
        while len(workers := children(process.pid)) < 2 and time.time() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)  # the signals are let through when both workers have been started
    else:
        under_way(tmp_path, process)
        workers = children(process.pid)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped and saved" in output, output
    assert "Traceback" not in output and "terminate called" not in output
    assert len(workers) == 2 and ends(workers)
    total = int(output.split("saved at step ")[1].split(".")[0]) + 32
    words = "--resume", str(only_folder(tmp_path)), "--total-timesteps", str(total)
    done = run("a3c", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_failure_in_a_worker_is_told_with_its_traceback(tmp_path):
    env_id = "probes:Raises-v0"
    with pytest.raises(
        RuntimeError, match="(?s)a worker failed:.*Traceback.*the motor is hot.*--resume"
    ):
        a3c.train(a3c.Args(env_id=env_id, **SETTINGS))
    assert (only_folder(tmp_path) / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "env_id, name", [("NanReward", "reward"), ("NanObservation", "observation")]
)
def test_not_finite(env_id, name, tmp_path):
    settings = SETTINGS | dict(num_steps=16, checkpoint_every=16)
    with pytest.raises(FloatingPointError, match=f"not finite at step [0-9]+: {name}.*holds step"):
        a3c.train(a3c.Args(env_id=probe("a3c", env_id), **settings))
    state = torch.load(only_folder(tmp_path) / "checkpoint.pt", weights_only=True)["state"]
    for part in ("actor", "critic"):
        assert all(value.isfinite().all() for value in state[part].values())


def test_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="cuda is set; the workers"):
        a3c.train(a3c.Args(env_id="CartPole-v1", cuda=True))
