"""Writes a static site: the scripts beside their equations, the lessons, all equations, exercises.

    pip install '.[docs]' && python docs/build.py        then open docs/site/index.html

Every equation is typeset from the header in which it stands. An error names what cannot be read.
"""

import ast
import difflib
import itertools
import re
import shutil
import sys
import unicodedata
from html import escape
from pathlib import Path
from typing import NamedTuple

from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = "reinforce reinforce_baseline a2c a3c trpo ppo rlhf grpo ddpg td3 sac".split()
LABEL = re.compile(r"\[((?:AC|CS|L3|L10|P7|X)-[\w.]+)\]")
OTHER_SUBJECT = {("ppo", "rlhf")}  # of these two only functions of the same name are compared
ABLATIONS = {  # [impl N] of ppo.py → the row of benchmarks.md that takes it away
    "1": "observations not standardised",
    "2": "the policy's last layer not scaled down",
    "3": "σ starts at 1",
    "4": "values and their loss in the rewards' units",
    "5": "time limits treated as terminations",
    "7": "advantages once per rollout, not per epoch",
    "8": "advantages not standardised",
    "9": "constant learning rate",
}


# ── Mathematics: the headers' notation (Unicode, _x, ^x, _{...}) as MathML ────────────────────────
FUNCTIONS = set("min max argmax clip log exp tanh softmax mean std dim".split())
LIMITS = set("∑∫") | {"min", "max", "argmax"}  # what follows _ and ^ stands below and above them
RELATIONS, PRODUCTS = set("=≤≥<>←∼≈≻→∝+−±,;/"), set("·⊙×|‖")
CLOSING = {"(": ")", "[": "]", "{": "}"}
RAISED = dict(zip("₀₁₂₃₄₅₆₇₈₉²³ᵀ*", "_0 _1 _2 _3 _4 _5 _6 _7 _8 _9 ^2 ^3 ^⊤ ^∗".split()))
RAISED = str.maketrans(RAISED | {"Σ": "∑"})
ACCENTS = {"\u0302": "ˆ", "\u0304": "¯"}
TOKEN = re.compile(
    r"[a-z]{2,}(?:_[a-z]{2,})+|[A-Za-z]{3,}|[A-Z]{2,}(?![\u0300-\u036f])"  # words
    r"|\d+,\d{3}|\d*\.?\d+(?:e-\d+)?|\.\.+|[^\W\d_][\u0300-\u036f]?'?|\s+|."
)


class Part(NamedTuple):
    kind: str  # operand, operator, function or bracket
    html: str
    spaced: bool  # a space stands before it


def mathml(text: str, display: bool = False) -> str:
    """A formula as MathML, with fractions and limits if displayed."""
    text = re.sub(r"(?<![A-Za-z])w([\di])('?)(?![A-Za-z])", r"w\2_\1", text.replace("⁻¹", "^{−1}"))
    text = re.sub(r"(\w)_i'", r"\1'_i", text)  # the prime belongs to Q, and in θ' to the index
    text = re.sub(r"([_^])(θ'|w'?(?:_[\di])?|−[\d.]+)", r"\1{\2}", text)
    text = re.sub(r"_\{([^{}]*)\.\.([^{}]*)\}", r"_{\1}^{\2}", text)  # Σ_{k=t..T}
    tokens = TOKEN.findall(text.translate(RAISED))
    return f"<math{' displaystyle=true' * display}>{joined(parse(tokens, None, display))}</math>"


def atom(token: str) -> str:
    if token.endswith("'"):
        return f"<mrow>{atom(token[:-1])}<mo lspace=0 rspace=0>′</mo></mrow>"
    base, *accents = unicodedata.normalize("NFD", token) if len(token) < 3 else [token]
    if accents and accents[0] in ACCENTS:
        accent = f"<mo stretchy=false>{ACCENTS[accents[0]]}</mo>"
        return f"<mover accent=true>{atom(base)}{accent}</mover>"
    if token[-1].isdecimal():
        return f"<mn>{token}</mn>"
    if token in "−⊤∑∫∗...":
        return f"<mo>{token}</mo>"
    if token in "∇∂∞Δ·½":
        return f"<mi mathvariant=normal>{token}</mi>"
    if not re.fullmatch("[A-Za-zα-ωΑ-Ω]|[A-Za-z_]{2,}", token):
        raise ValueError(f"unknown in an equation: {token!r}")
    tag = "mi" if len(token) == 1 or token in FUNCTIONS else "mtext"
    return f"<{tag}>{token}</{tag}>"


def argument(tokens: list[str], display: bool) -> str:
    """What stands after _, ^ or √: a group in brackets, or an atom."""
    if not tokens:
        raise ValueError("nothing stands after _, ^ or √")
    token = tokens.pop(0)
    return joined(parse(tokens, CLOSING[token], display)) if token in CLOSING else atom(token)


def parse(tokens: list[str], stop: str | None, display: bool) -> list[Part]:
    """Takes the tokens up to the closing bracket `stop`."""
    row, spaced = [], False
    while tokens:
        token = tokens.pop(0)
        if token == stop:
            return with_fractions(row) if display else row
        if token.isspace():
            spaced = True
            continue
        kind, is_first = "operand", not row or row[-1].kind == "operator"
        if token == "√":
            html = f"<msqrt>{argument(tokens, display)}</msqrt>"
        elif token in CLOSING:
            inner, kind = joined(parse(tokens, CLOSING[token], display)), "bracket"
            fence = "<mo>{}</mo>" if "<mfrac" in inner else "<mo stretchy=false>{}</mo>"
            html = fence.format(token) + inner + fence.format(CLOSING[token])
            html = f"<mrow>{html}</mrow>"
        elif token in RELATIONS | PRODUCTS and not (token == "·" and is_first and tokens):
            form = "prefix" if is_first and tokens else "infix"
            if not row and not tokens:  # a word of its own, between the spaces of the text
                form += " lspace=0 rspace=0"
            elif token in PRODUCTS:
                form += " lspace=.17em rspace=.17em stretchy=false"
            kind = "operand" if tokens[:1] == ["_"] else "operator"  # Q(s,a)|_{a=...}
            html = f"<mo form={form}>{escape(token)}</mo>"
        else:
            kind = "function" if token in FUNCTIONS | LIMITS else "operand"
            html = atom(token)
        scripts = {}
        while tokens and tokens[0] in ("_", "^"):
            mark, inner = tokens.pop(0), argument(tokens, False)
            inner = inner.replace("form=infix", "form=infix lspace=0 rspace=0")
            scripts[mark] = f"<mrow>{inner}</mrow>"
        if scripts:
            names = ("under", "over") if display and token in LIMITS else ("sub", "sup")
            tag = "m" + names[0] * ("_" in scripts) + names[1] * ("^" in scripts)
            html = f"<{tag}>{html}{scripts.get('_', '')}{scripts.get('^', '')}</{tag}>"
        row.append(Part(kind, html, spaced))
        spaced = False
    if stop:
        raise ValueError(f"a bracket is not closed by {stop}")
    return with_fractions(row) if display else row


def with_fractions(row: list[Part]) -> list[Part]:
    """Replaces each slash by a fraction of what touches it: up to a space or an operator."""

    def ends(i: int) -> bool:  # no operand of a fraction goes on at i
        return i == len(row) or row[i].spaced or "operator" in (row[i].kind, row[i - 1].kind)

    slashes = (i for i in range(1, len(row)) if row[i].html.endswith(">/</mo>"))
    if (slash := next(slashes, None)) is None:
        return row
    first = next(i for i in range(slash - 1, -1, -1) if i == 0 or ends(i))
    last = next(i for i in range(slash + 2, len(row) + 1) if ends(i))
    terms = [joined(row[first:slash]), joined(row[slash + 1 : last])]
    for i, term in enumerate(terms):  # without brackets around all of it
        terms[i] = re.sub(r"^<mrow><mo[^>]*>\(</mo>(.*)<mo[^>]*>\)</mo></mrow>$", r"\1", term)
    html = "<mfrac><mrow>{}</mrow><mrow>{}</mrow></mfrac>".format(*terms)
    return with_fractions([*row[:first], Part("operand", html, row[first].spaced), *row[last:]])


def joined(row: list[Part]) -> str:
    """MathML of the parts, with thin spaces between factors and after functions."""
    html = ""
    for before, part in zip([None, *row], row):
        factors = before and "operator" not in (before.kind, part.kind)
        if factors and (part.spaced or before.kind == "function" and part.kind != "bracket"):
            html += "<mspace width=.18em />"
        html += part.html
    return html


# ── Prose: its mathematical words are typeset, labels and names of scripts are links ──────────────
ENGLISH = r"\([^()]*(?<![\w_])(?!(?:log|exp|min|mean)\b)[a-z]{2,}(?![\w_(])"  # a remark in brackets
GROUP = "(?!)"
for _ in range(4):  # brackets in brackets
    GROUP = rf"[(\[{{](?:[^()\[\]{{}}]|{GROUP})*[)\]}}]"
WORD = re.compile(
    rf"`[^`]+`|(?:[^\s()\[\]{{}}]|(?<=[^\s(\[]){GROUP}|(?!{ENGLISH}){GROUP})+"  # with its brackets
)
MATHS = re.compile(
    r"[Ͱ-Ͽ\u0302\u0304Âĝ√½=≤≥<>←∼≈≻·⊙±−∝|‖_^₀-₉²³ᵀ⁻×∇∂∞∫]|\S→|\d/[A-Z]"
    r"|^(?:[B-HJ-Zb-z]\d?'?|a'|\+)$|^(?:[A-Za-z]'?|std|mean|exp)[(\[]"
)
CODE = re.compile(r"^(?:`([^`]+)`|(--[\w-]+|[a-z][a-z\d]*_[a-z_]{2,}\w*(?!\.py|\w)))")
OPERATOR = re.compile("(<math[^>]*><mo[^>]*>[=≤←∼≈+−]</mo></math> <math.*?</math>)")


def prose(text: str, display: bool = False) -> str:
    def word(found: re.Match) -> str:
        core, tail = re.fullmatch(r"(.*?)((?:-[a-z]{2,})?[,.;:]*)", found[0]).groups()
        rest = found.string[found.end() :]
        letter = core in ("a", "A", "I") and re.match(r" [=∼≈·−+]", rest) or found[0] == "a,"
        if CODE.match(core):
            return CODE.sub(r"<code>\1\2</code>", escape(found[0], False))
        if (letter or MATHS.search(core)) and not LABEL.search(core) and not core.endswith(".py"):
            return mathml(core, display) + tail  # a piece of its own: no line breaks inside one
        html = LABEL.sub(r"<a class=label href=equations.html#\1>\1</a>", escape(found[0], False))
        return re.sub(rf"\b({'|'.join(SCRIPTS)})\.py", r"<a href=\1.html>\1</a>", html)

    html = WORD.sub(word, text.replace("∣", "|").replace(" / ", "/"))
    return OPERATOR.sub(r"<span class=w>\1</span>", html)  # an operator stays with what follows


# ── Reading: tables, headers, code, tests ─────────────────────────────────────────────────────────
class Item(NamedTuple):
    kind: str  # eq, step, impl or p, a paragraph
    key: str  # label of the equation, number of the step or of [impl]
    text: str
    remark: str = ""
    depth: int = 0  # of a step


ITEM = re.compile(r" {4}(?:(\d+)\.|\[(impl )?([\w.-]+)\])( +)(.*)")
KINDS = {"Comment": "c", "Literal.String.Doc": "c", "Keyword": "k", "Literal": "s"}
KINDS |= {"Name.Function": "f", "Name.Class": "f"}


def items_of(lines: list[str]) -> list[Item]:
    """A section of a header, line by line."""
    items = []
    for line in lines:
        if found := ITEM.match(line):
            number, impl, label, gap, text = found.groups()
            kind = "step" if number else "impl" if impl else "eq"
            parts = re.split(" {2,}" if impl else " {3,}", text, maxsplit=1)
            if impl and len(parts) == 1:  # a full line: the source follows in column 75
                parts = line[len(line) - len(text) : 74], line[75:]
                parts = parts if re.match(" [A-Z]", line[74:]) else [text]
            depth = len(gap) // 4 if number else 0
            items.append(Item(kind, number or label, *parts, *[""] * (2 - len(parts)), depth))
        elif items and (line.startswith(" " * 7) or items[-1].kind == "p"):
            items[-1] = items[-1]._replace(text=f"{items[-1].text} {line.strip()}")
        else:
            items.append(Item("p", "", line.strip()))
    return items


def table(path: str, columns: int) -> list[list[str]]:
    """The rows, with heads, of all tables of a page that have so many columns."""
    lines = (ROOT / path).read_text().splitlines()
    rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [row for row in rows if len(row) == columns and row[0].strip("-")]


EQUATIONS = {row[0].split()[0]: row for row in table("equations.md", 5)[1:]}
LESSONS = [(*x[0].split(" → "), x[1]) for x in table("README.md", 2) if " → " in x[0]][1:]
DIFFERENCES = {row[0]: row[2].replace("-", "−") for row in table("benchmarks.md", 3)}
TESTS: dict[str, list[str]] = {}  # label → links to its tests, which build() fills


class Source:
    """A file: its lines, plain and highlighted; its top-level parts; where its labels stand."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self.raw, html = path.read_text().splitlines(), ""
        for token, value in PythonLexer(stripnl=False).get_tokens(path.read_text()):
            kind = next((KINDS[x] for x in KINDS if str(token)[6:].startswith(x)), None)
            parts = escape(value, False).split("\n")
            html += "\n".join(f"<b class={kind}>{x}</b>" if kind and x else x for x in parts)
        self.html, (docstring, *nodes) = html.split("\n"), ast.parse(path.read_text()).body
        self.end, self.parts = docstring.end_lineno, {}
        for name, group in itertools.groupby(nodes, lambda node: getattr(node, "name", "")):
            first, *_, last = [*group] * 2
            start = min(x.lineno for x in [first, *getattr(first, "decorator_list", [])])
            self.parts[name or ast.unparse(first).split()[0]] = range(start, last.end_lineno + 1)
        self.title, *blocks = docstring.value.value.strip().split("\n\n")
        self.sections = {}
        for heading, *lines in (block.split("\n") for block in blocks):
            if found := re.match(r"(Changed from \w+\.py|Run): (.*)", heading):
                heading, text = found.groups()
                lines = [f"`{text}`" if heading == "Run" else text, *lines]
            self.sections[heading] = items_of(lines)
        self.items = [item for items in self.sections.values() for item in items]
        self.labels, args = {}, self.parts.get("Args", ())
        comments = ((n, x.partition("#")[2]) for n, x in enumerate(self.raw, 1) if n > self.end)
        found = [(n in args, n, label) for n, x in comments for label in LABEL.findall(x)]
        for in_args, n, label in sorted(found):  # of Args only what stands nowhere else
            if not in_args or label not in self.labels:
                self.labels.setdefault(label, []).append(n)

    def item(self, kind: str, key: str) -> Item | None:
        return next((x for x in self.items if (x.kind, x.key) == (kind, key)), None)

    def line(self, n: int, own: bool = True, card: bool = True) -> str:
        """Line n as it stands in the file, and its card before it; own: on the file's own page."""
        here = {label: "" for label in self.labels if own}

        def link(found: re.Match) -> str:
            label = found[1]
            page = here.get(label, "equations.html" if label in EQUATIONS else None)
            return found[0] if page is None else f"<a href={page}#{label}>{found[0]}</a>"

        page = "" if own else f"{self.name}.html"
        number = f"<a class=n href={page}#L{n} data-n={n} tabindex=-1 aria-hidden=true></a>"
        indent = len(self.raw[n - 1]) - len(self.raw[n - 1].lstrip())
        code = number + LABEL.sub(link, self.html[n - 1])
        anchor = f" id=L{n}" * own
        beside = self.card(n, own) if card and n > self.end else ""
        return f"{beside}<code{anchor} style=--i:{indent}>{code}\n</code>"

    def card(self, n: int, own: bool) -> str:
        """What stands beside line n: a step, equations, what is not in the text."""
        line, html, page = self.raw[n - 1], "", f"{self.name}.html"
        step = re.match(r" +# (\d+)\. ", line)
        if step and (item := self.item("step", step[1])):
            html += entry(item, f"{page}#algorithm", anchor=f" id=step-{item.key}" * own)
        for label in LABEL.findall(line.partition("#")[2]):
            if n in self.labels.get(label, []):
                item = self.item("eq", label) or Item("eq", label, EQUATIONS[label][1])
                anchor = f" id={label}" * (own and n == self.labels[label][0])
                html += entry(item, f"equations.html#{label}", compared(label), anchor)
        for number in re.findall(r"\[impl (\d+)\]", line):
            if item := self.item("impl", number):
                html += entry(item, f"{page}#impl-{number}", self.worth(number))
        return f"<ul class=card data-n={n}>{html}</ul>" if html else ""

    def worth(self, number: str) -> str:
        """The source of [impl N], and what the ablation says."""
        item, row = self.item("impl", number), self.name == "ppo" and ABLATIONS.get(number)
        return prose(item.remark) + (f"\n{row}: {DIFFERENCES[row]}" if row else "")


# ── Pages ─────────────────────────────────────────────────────────────────────────────────────────
def compared(label: str) -> str:
    """The tests that name a label, and what they compare the equation with."""
    tests, text = ", ".join(TESTS.get(label, [])[:2]), EQUATIONS[label][2].strip("-")
    return tests + ": " * bool(tests and text) + prose(text)


def entry(item: Item, href: str = "", more: str = "", anchor: str = "") -> str:
    name = f"[impl {item.key}]" if item.kind == "impl" else item.key
    key = f"<a class=key href={href}>{name}</a> " if href else ""
    text = f"<div class=text>{prose(item.text, item.kind == 'eq')}</div>"
    body = key + text if item.kind == "step" else text + key
    more = f"<div class=more>{more}</div>" * bool(more)
    return f"<li class={item.kind}{anchor} style=--i:{item.depth}>{body}{more}</li>"


def section(head: str, body: str, slug: str = "") -> str:
    anchor = f" id={slug}" * bool(slug)
    return f"<section{anchor}><div class=head>{head}</div><div class=body>{body}</div></section>\n"


def write(site: Path, name: str, title: str, body: str, toc: str = "") -> None:
    names = ["index", *SCRIPTS, "equations", "exercises"]
    current = {name: " aria-current=page"}
    nav = " ".join(f"<a href={x}.html{current.get(x, '')}>{x}</a>" for x in names)
    toc = toc and f"<nav class=toc aria-label='This page'>{toc}</nav>"
    (site / f"{name}.html").write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        "<link rel=stylesheet href=style.css><a class=skip href=#main>Skip to the text</a>\n"
        f"<header><nav aria-label=Site>{nav}</nav></header>{toc}<main id=main>{body}</main>\n"
    )


def write_source(site: Path, source: Source) -> None:
    """The header as text; below it the code with its cards. A test's page is the code only."""
    title, _, cited = source.title.rstrip(".").partition("; ")
    copy = f"<a href={source.path.name}>copy this file</a>"
    main = section(
        f"<p>{source.path.name}\n{len(source.raw)} lines, {copy}</p>",
        f"<h1>{prose(title)}</h1><p class=cite>{escape(cited)}</p>",
    )
    toc, listing = "", "<div class=part><details><summary>the header, typeset above</summary>"
    for heading, items in source.sections.items() if source.name in SCRIPTS else ():
        name, rest = re.match(r"([^\[,;:]+)[,;: ]*(.*)", heading).groups()
        slug, body = name.split()[0].lower(), ""
        for item in items:
            page = "equations.html" * (item.kind == "eq" and item.key not in source.labels)
            href = f"{page}#{'step-' * (item.kind == 'step')}{item.key}" * (item.kind != "p")
            if item.kind == "impl":
                body += entry(
                    item, f"#impl-{item.key}", source.worth(item.key), f" id=impl-{item.key}"
                )
            else:
                body += entry(item, href, prose(item.remark))
        for a, b, _ in LESSONS:
            if b == source.name and slug == "changed":
                rest = f"<a href={a}-{b}.html>line by line</a>"
        rest = rest if rest.startswith("<a") else prose(rest)
        main += section(f"<h2>{prose(name)}</h2><p>{rest}</p>", f"<ul>{body}</ul>", slug)
        toc += f"<a href=#{slug}>{name}</a> "
    for n, line in enumerate(source.raw, 1):
        if ruler := re.match("# ── (.+?)(?:: (the same .+?))? ─", line):
            toc += f"<a href=#code-{n}>{ruler[1]}</a> "
            listing += f"</div><div class=part><h3 id=code-{n}>{ruler[1]}</h3>"
            listing += f"<details><summary>{ruler[2]}</summary>" * bool(ruler[2])
        listing += source.line(n, card=source.name in SCRIPTS)
        folded = listing.count("<details") > listing.count("</details")
        listing += "</details>" * (folded and n in (source.end, len(source.raw)))
    code = f"<h2>Code</h2><div class=src>{listing}</div></div>"
    write(site, source.name, title, f"{main}<section id=code>{code}</section>", toc)
    shutil.copy(source.path, site)


def write_lesson(site: Path, a: Source, b: Source, what: str) -> None:
    """What changes from a to b: in words, in the equations, and line by line, by function."""
    html, same, only = "", "", {a.name: "", b.name: ""}
    names = sorted(a.parts | b.parts, key=lambda x: (b.parts.get(x) or a.parts[x]).start)
    for name in names:
        old, new = a.parts.get(name, range(0)), b.parts.get(name, range(0))
        if (a.name, b.name) in OTHER_SUBJECT and not (old and new):
            script, start = (a, old.start) if old else (b, new.start)
            only[script.name] += f"<a href={script.name}.html#L{start}>{name}</a> "
            continue
        texts = [[x.raw[n - 1] for n in lines] for x, lines in ((a, old), (b, new))]
        if texts[0] == texts[1]:
            same += f"<a href={b.name}.html#L{new.start}>{name}</a> "
            continue
        html += f"<div class=part><h3>{name}</h3>"
        for tag, i, j, k, m in difflib.SequenceMatcher(None, *texts, False).get_opcodes():
            if tag == "equal":
                html += f"<p class=gap>{m - k} line{'s' * (m - k > 1)} the same</p>"
                continue
            html += "".join(f"<del>{a.line(n, False, False)}</del>" for n in old[i:j])
            html += "".join(f"<ins>{b.line(n, False)}</ins>" for n in new[k:m])
        html += "</div>"
    equations = ""
    for kind, one, other in (("del", a, b), ("ins", b, a)):
        for item in (x for x in one.items if x.kind == "eq"):
            if not (twin := other.item("eq", item.key)) or twin.text != item.text:
                line = entry(item, f"equations.html#{item.key}", prose(item.remark))
                equations += line.replace("class=eq", f"class='eq {kind}'", 1)
    counts = {x: html.count(f"<{x}>") for x in ("del", "ins")}
    head = f"<del>{counts['del']} lines of <a href={a.name}.html>{a.name}</a></del><br>"
    head += f"<ins>{counts['ins']} lines of <a href={b.name}.html>{b.name}</a></ins>"
    main = section(f"<p>{head}</p>", f"<h1>{a.name} → {b.name}</h1><p class=lead>{prose(what)}</p>")
    main += section(
        "<h2>Equations</h2><p>that only one of the two has</p>", f"<ul>{equations}</ul>"
    )
    main += section("<h2>Same text</h2>", f"<code>{same}</code>")
    for name, links in only.items():
        main += section(f"<h2>Only in {name}</h2>", f"<code>{links}</code>") if links else ""
    main += f"<section id=code><h2>Code</h2><div class='src diff'>{html}</div></section>"
    write(site, f"{a.name}-{b.name}", f"{a.name} → {b.name}", main)


def write_equations(site: Path, scripts: dict[str, Source]) -> None:
    heads = "label", "equation", "what its tests compare with", "in the code of"
    html = "".join(f"<th scope=col>{head}" for head in heads) + "<tbody>"
    for label, (names, text, _, _, told) in EQUATIONS.items():
        places = [(x.name, n) for x in scripts.values() for n in x.labels.get(label, [])]
        code = " ".join(f"<a href={name}.html#L{n}>{name}:{n}</a>" for name, n in places)
        synonyms = names[len(label) :].strip(" ()")
        html += f"<tr id={label}><th scope=row>{label}<small>{synonyms}</small>"
        html += f"<td>{prose(text, True)}<td>{compared(label)}"
        html += f"<td class=more>{code or told and f'told in {told}'}\n"
    texts = "".join(
        f"<tr><th scope=row>{x}<td>{y}<td>{z}" for x, y, z in table("equations.md", 3)[1:]
    )
    main = section("", f"<h1>Equations</h1><table>{texts}</table>")
    write(site, "equations", "Equations", f"{main}<table><thead><tr>{html}</table>")


def write_exercises(site: Path) -> None:
    """docs/exercises.md: headings, paragraphs, and indented commands."""
    title, *blocks = (ROOT / "docs/exercises.md").read_text().strip().split("\n\n")
    parts = []  # (heading, body)
    for block in blocks:
        if found := re.match("(#+) (.*)", block):
            parts.append(["", ""] if found[1] == "##" else ["", ""])
    write(site, "exercises", title.strip("# "), "")


def write_index(site: Path, scripts: dict[str, Source]) -> None:
    """The reading order as a map: of each script what is new, and what it reaches."""
    readme, html, starts = (ROOT / "README.md").read_text(), "", [x[0] for x in LESSONS]
    for name, script in scripts.items():
        idea = script.sections["Idea"][0].text.partition(". ")[0] + "."
        before, _, what = next((x for x in LESSONS if x[1] == name), ("", "", idea))
        result = script.sections["Run"][-1].text.rpartition("`")[2]
        is_leaf = starts.count(before) > 1 and name not in starts
        html += "</ol><ol class=map>" * (not before and bool(html))
        html += f"<li{' class=leaf' * is_leaf}><h2><a href={name}.html>{name}</a></h2>"
        html += f"<div>{prose(script.title.split(';')[0])}<br>{prose(what)}"
        html += f" <a href={before}-{name}.html>line by line</a>" * bool(before)
        html += f"<small>{prose(result)}</small></div>"
    lead = readme.split("\n\n")[1].partition(" PPO")[0]
    lines = scripts["ppo"].parts["clipped_surrogate"]
    code = "".join(scripts["ppo"].line(n, False) for n in lines)
    counts = f"{len(scripts)} scripts, {len(LESSONS)} lessons,\n{len(EQUATIONS)} equations"
    main = section(f"<p>{counts}</p>", f"<h1>Policy gradients</h1><p class=lead>{lead}</p>")
    main += f"<section><div class=src>{code}</div></section><ol class=map>{html}</ol>"
    for text, path in re.findall(r"!\[(.+?)\]\((.+?)\)", readme):
        main += f"<img src={Path(shutil.copy(ROOT / path, site)).name} alt='{escape(text)}'>"
    write(site, "index", "Policy gradients", main)


def build(site: Path) -> None:
    site.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "docs/style.css", site)
    scripts = {name: Source(ROOT / f"{name}.py") for name in SCRIPTS}
    tests = [Source(path) for path in sorted((ROOT / "tests").glob("test_*.py"))]
    TESTS.clear()
    for test in tests:
        for name, lines in test.parts.items():
            text = "\n".join(test.raw[n - 1] for n in lines)
            docstring = text.split('"""')[1] if name.startswith("test_") and '"""' in text else ""
            for label in dict.fromkeys(LABEL.findall(docstring)):
                link = f"<a href={test.name}.html#L{lines.start}>{name[5:].replace('_', ' ')}</a>"
                TESTS.setdefault(label, []).append(link)
    for source in [*scripts.values(), *tests]:
        write_source(site, source)
    for a, b, what in LESSONS:
        write_lesson(site, scripts[a], scripts[b], what)
    write_equations(site, scripts)
    write_exercises(site)
    write_index(site, scripts)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/site")
