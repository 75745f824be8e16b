"""python exercises.py ppo.py AC-09b X-GAE    writes exercises/ppo.py without these equations' lines
python exercises.py ppo.py --level easy       without one line; with --level all, without all of them
python exercises.py --bug 7                   a script with bug 7 of docs/bugs.json, its solution
python -m pytest --exercises -k AC-09b        tests of a label; exercises/ replaces the originals
python exercises.py --check [ppo.py]          does a test of its label notice each line and bug?"""

import ast
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BUGS = json.loads((ROOT / "docs/bugs.json").read_text())


def labelled(script: str) -> list[tuple[ast.stmt, list[str]]]:
    """The statements that end with labels, the last one first, and these labels."""
    text, found = (ROOT / script).read_text(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.Return | ast.If):
            line = text.splitlines()[getattr(node, "test", node).end_lineno - 1]
            found.append((node, re.findall(r"\[([A-Z]+\d*-[\w.]+)\]", line.partition("  # ")[2])))
    return sorted((x for x in found if x[1]), key=lambda x: -x[0].lineno)


def blanked(script: str, statements: list[tuple[ast.stmt, list[str]]]) -> str:
    """The script without these statements; the left side of each, or of its equation, remains."""
    statements or sys.exit(f"no line of {script} ends with that label")
    text = (ROOT / script).read_text()
    left_sides = dict(re.findall(r"(?m)^ {4}\[([\w.-]+)\] +(.+?) [=←∼] ", text.split('"""')[1]))
    lines = text.splitlines(keepends=True)
    for node, labels in statements:
        targets = " = ".join(map(ast.unparse, getattr(node, "targets", [])))
        left = targets or left_sides.get(labels[0])
        message = f"[{'] ['.join(labels)}] {left} = ..." if left else f"[{'] ['.join(labels)}] ..."
        blank = f'{" " * node.col_offset}raise NotImplementedError("{message}")\n'
        lines[node.lineno - 1 : node.end_lineno] = [blank]
    return "".join(lines)


def with_bug(script: str, old: str, new: str, tests: str) -> str:
    before, after = (ROOT / script).read_text().split(old)  # it matches exactly once
    return before + new + after


def check(scripts: list[str]) -> bool:
    """Whether each line that is missing, and each bug, makes one of its tests fail."""
    cases = [(bug["script"], with_bug(**bug), bug["tests"]) for bug in BUGS.values()]
    cases += [(s, blanked(s, [x]), y) for s in scripts for x in labelled(s) for y in x[1]]
    statuses = []
    for script, text, tests in (case for case in cases if case[0] in scripts):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, script).write_text(text)
            words = ["-qx", "-n0", "-k", tests, "-o", f"pythonpath={folder} . tests"]
            command = [sys.executable, "-m", "pytest", *words]
            statuses.append(subprocess.run(command, cwd=ROOT, capture_output=True).returncode)
        print("noticed" if statuses[-1] == 1 else "NOT NOTICED", script, tests, flush=True)
    return set(statuses) == {1}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--check", *scripts]:
            sys.exit(not check(scripts or sorted(path.name for path in ROOT.glob("*.py"))))
        case ["--bug", number]:
            script, text = BUGS[number]["script"], with_bug(**BUGS[number])
        case [script, "--level", "easy" | "all" as level]:  # easy: the first return with a label
            found = labelled(script)
            returns = [x for x in found if isinstance(x[0], ast.Return)]
            text = blanked(script, found if level == "all" else returns[-1:])
        case [script, label, *more]:
            text = blanked(script, [x for x in labelled(script) if {label, *more} & {*x[1]}])
        case _:
            sys.exit(__doc__)
    (ROOT / "exercises").mkdir(exist_ok=True)
    (ROOT / "exercises" / script).write_text(text)
    print(f"exercises/{script}")
