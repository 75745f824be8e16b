"""python exercises.py ppo.py AC-09b X-GAE    writes exercises/ppo.py without these equations' lines
python exercises.py ppo.py --level easy       without one line; with --level all, without all of them
python exercises.py --bug 7                   with planted bug 7; the solution is in docs/bugs.json
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
    """The script without these statements; of each the left side or `return` remains."""
    lines = (ROOT / script).read_text().splitlines(keepends=True)
    for node, labels in statements:
        left = "".join(f"{ast.unparse(x)} = " for x in getattr(node, "targets", []))
        left = "return " if isinstance(node, ast.Return) else left
        message = f"[{'] ['.join(labels)}] {left}..."
        blank = f'{" " * node.col_offset}raise NotImplementedError("{message}")\n'
        lines[node.lineno - 1 : node.end_lineno] = [blank]
    return "".join(lines)


def with_bug(script: str, old: str, new: str, tests: str) -> str:
    return new.join((ROOT / script).read_text().split(old))  # it matches exactly once


def check(scripts: list[str]) -> bool:
    """Whether each line that is missing, and each bug, makes one of its tests fail."""
    cases = [(bug["script"], with_bug(**bug), bug["tests"]) for bug in BUGS.values()]
    cases += [(s, blanked(s, [x]), y) for s in scripts for x in labelled(s) for y in x[1]]
    statuses = []
    for script, text, tests in (case for case in cases if case[0] in scripts):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, script).write_text(text)
            words = ["-qx", "-n0", "-k", tests, "-o", f"pythonpath={folder} . tests benchmarks"]
            command = [sys.executable, "-m", "pytest", *words]
            statuses.append(subprocess.run(command, cwd=ROOT, capture_output=True).returncode)
        print({0: "NOT NOTICED", 1: "noticed"}.get(statuses[-1], statuses[-1]), script, tests)
    return set(statuses) == {1}


if __name__ == "__main__":
    scripts = sorted(path.name for path in ROOT.glob("*.py") if path.name != "exercises.py")
    match sys.argv[1:]:
        case ["--check", *names] if {*names} <= {*scripts}:
            sys.exit(not check(names or scripts))
        case ["--bug", number] if bug := BUGS.get(number):
            script, text, labels = bug["script"], with_bug(**bug), [bug["tests"]]
        case [script, "--level", "easy" | "all" as level] if script in scripts:
            found = [x for x in labelled(script) if level == "all" or isinstance(x[0], ast.Return)]
            found = found if level == "all" else found[-1:]  # easy: the first return
            text, labels = blanked(script, found), [y for x in found for y in x[1]]
        case [script, *labels] if script in scripts and labels:
            found = labelled(script)
            if not {*labels} <= (known := {y for x in found for y in x[1]}):
                sys.exit(f"the lines of {script} that can be taken away: {' '.join(sorted(known))}")
            text = blanked(script, [x for x in found if {*labels} & {*x[1]}])
        case words:
            sys.exit(f"{__doc__}\nbugs: {' '.join(BUGS)}; not understood: {' '.join(words)}")
    (ROOT / "exercises").mkdir(exist_ok=True)
    (ROOT / "exercises" / script).write_text(text)
    print(f"exercises/{script}: python -m pytest --exercises -k '{' or '.join(labels)}'")
