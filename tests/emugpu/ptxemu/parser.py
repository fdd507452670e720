"""PTX text -> flat instruction lists.

Registers are renamed to integer slots, nested `{ }` scopes are flattened and calls to device
functions that have a body are inlined (so there is no call stack and no recursion).
"""

import re
import struct
from dataclasses import dataclass, field

import numpy as np

BITS = {"pred": 1, "b128": 128, "f16x2": 32, "bf16x2": 32, "f16": 16, "bf16": 16, "tf32": 32}
for _t in "bsu":
    for _n in (8, 16, 32, 64):
        BITS[f"{_t}{_n}"] = _n
BITS.update(f32=32, f64=64)

SPECIAL64 = {"%clock64", "%globaltimer"}


class PTXError(Exception):
    pass


@dataclass
class Reg:
    slot: int
    bits: int
    name: str


@dataclass
class Imm:
    value: object  # int, or (kind, bits) for 0f/0d literals
    isfloat: bool = False


@dataclass
class Sym:
    name: str
    off: int = 0


@dataclass
class Vec:
    items: list


@dataclass
class Addr:
    base: object  # Reg | Sym | None
    off: int = 0
    coords: object = None  # tensor coordinates for cp.async.bulk.tensor


@dataclass
class Neg:  # !%p
    reg: object


@dataclass
class Pair:  # d|p
    a: object
    b: object


SINK = None


@dataclass
class Ins:
    op: str
    parts: list
    args: list
    pred: object = None
    neg: bool = False
    text: str = ""
    line: int = 0
    target: int = -1  # resolved branch target


@dataclass
class Var:
    name: str
    space: str
    align: int
    size: int
    init: bytes = None
    offset: int = 0
    relocs: list = None


@dataclass
class Func:
    name: str
    is_entry: bool
    params: list
    rets: list
    body: list = None  # raw statements
    attrs: dict = field(default_factory=dict)
    has_body: bool = False


@dataclass
class Program:
    """An entry function, flattened and ready for code generation."""

    name: str
    ins: list
    nregs: int
    regbits: list
    regnames: list
    special: dict  # special register name -> slot
    shared: dict  # name -> Var (static; offset assigned)
    shared_static: int
    extern_shared: set
    local: dict  # name -> Var, per-thread arrays
    local_size: int
    params: list  # [(name, offset, size, align)]
    param_size: int
    attrs: dict


def strip_comments(t):
    t = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"), t, flags=re.S)
    return re.sub(r"//[^\n]*", "", t)


def _split_statements(t):
    """Yield (line, text) for each `;` statement, `{`, `}` and `label:`."""
    i, n, line = 0, len(t), 1
    cur, start, depth = [], 1, 0
    while i < n:
        ch = t[i]
        if ch == "\n":
            line += 1
        if ch == '"':
            j = t.index('"', i + 1)
            cur.append(t[i : j + 1])
            i = j + 1
            continue
        s = None
        if not cur and ch.isspace():
            i += 1
            continue
        if not cur:
            start = line
            m = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)").match(t, i)
            if m:
                yield line, m.group(1) + ":"
                line += m.group(0).count("\n")
                i = m.end()
                continue
            if t.startswith(
                (".loc ", ".loc\t", ".file", ".version", ".target", ".address_size", ".section"), i
            ):
                if t.startswith(".section", i):
                    j = t.find("}", i)
                    j = n if j < 0 else j + 1
                else:
                    j = t.find("\n", i)
                    j = n if j < 0 else j
                line += t.count("\n", i, j)
                yield start, t[i:j].strip()
                i = j
                continue
            if ch in "{}":
                yield line, ch
                i += 1
                continue
        if ch == "{":
            txt = "".join(cur).strip()
            # function header followed by its body
            if depth == 0 and re.search(r"\.(entry|func)\b", txt):
                yield start, txt
                yield line, "{"
                cur = []
                i += 1
                continue
            depth += 1
        elif ch == "}":
            depth -= 1
        if ch == ";" and depth == 0:
            yield start, "".join(cur).strip()
            cur = []
        else:
            cur.append(ch)
        i += 1


_num = re.compile(r"^-?(0[xX][0-9a-fA-F]+|\d+)U?$")


def parse_imm(s):
    s = s.strip()
    neg = s.startswith("-")
    b = s[1:].strip() if neg else s
    if re.match(r"^0[fF][0-9a-fA-F]{8}$", b):
        v = struct.unpack(">f", bytes.fromhex(b[2:]))[0]
        bits = int(b[2:], 16) ^ (0x80000000 if neg else 0)
        return Imm(("f32", bits, v), True)
    if re.match(r"^0[dD][0-9a-fA-F]{16}$", b):
        bits = int(b[2:], 16) ^ ((1 << 63) if neg else 0)
        return Imm(("f64", bits, 0.0), True)
    if _num.match(s):
        b = b.rstrip("U")
        if re.match(r"^0\d+$", b):
            v = int(b, 8)
        else:
            v = int(b, 0)
        return Imm(-v if neg else v)
    if re.match(r"^\d+\.\d*([eE][-+]?\d+)?$", b):
        v = -float(b) if neg else float(b)
        return Imm(("f64", struct.unpack("<Q", struct.pack("<d", v))[0], v), True)
    return None


def _split_commas(s):
    out, cur, d = [], [], 0
    for ch in s:
        if ch in "{[(":
            d += 1
        elif ch in "}])":
            d -= 1
        if ch == "," and d == 0:
            out.append("".join(cur).strip())
            cur = []
        else:
            cur.append(ch)
    last = "".join(cur).strip()
    if last:
        out.append(last)
    return out


_var = re.compile(
    r"(?P<attrs>(?:\.[\w:]+(?:\s+\d+)?\s+)*?)\.(?P<ty>[busf]\d+|b128|pred|f16x2|bf16x2|bf16)\s+"
    r"(?P<name>[\w$%]+)\s*(?P<dims>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<init>.*))?$",
    re.S,
)


def parse_var(txt):
    """`.visible .shared .align 16 .b8 name[128] = {...}` -> Var (or None)."""
    m = _var.search(txt)
    if not m:
        raise PTXError(f"cannot parse declaration: {txt}")
    head = txt[: m.start("ty")]
    sp = re.search(r"\.(global|shared|local|const|param)\b", head)
    al = re.search(r"\.align\s+(\d+)", head)
    es = BITS[m["ty"]] // 8
    dims = re.findall(r"\[\s*(\d*)\s*\]", m["dims"])
    cnt = 1
    for d in dims:
        cnt *= int(d) if d else 0
    v = Var(m["name"], sp[1] if sp else "reg", int(al[1]) if al else es, es * cnt)
    if m["init"]:
        vals = re.findall(r"[^\s,{}]+(?:\([^)]*\))?", m["init"])
        data = bytearray()
        v.relocs = []
        for x in vals:
            im = parse_imm(x)
            if im is None:
                v.relocs.append((len(data), x, es))
                data += bytes(es)
            elif im.isfloat:
                data += (im.value[1]).to_bytes(4 if im.value[0] == "f32" else 8, "little")
            else:
                data += (im.value & ((1 << (8 * es)) - 1)).to_bytes(es, "little")
        if v.size == 0:
            v.size = len(data)
        v.init = bytes(data[: v.size]) + bytes(max(0, v.size - len(data)))
    return v


class Parsed:
    """Module-level contents of a PTX file."""

    def __init__(self, text):
        self.funcs, self.vars = {}, {}
        self.target = ""
        toks = list(_split_statements(strip_comments(text)))
        i = 0
        while i < len(toks):
            line, s = toks[i]
            if s.startswith(".target"):
                self.target = s.split()[1].strip(",")
            if (
                s.startswith(
                    (
                        ".version",
                        ".target",
                        ".address_size",
                        ".file",
                        ".section",
                        ".loc ",
                        ".loc\t",
                        ".pragma",
                        ".alias",
                    )
                )
                or s == ""
            ):
                i += 1
                continue
            if re.search(r"\.(entry|func)\b", s):
                f = self._header(s)
                i += 1
                if i < len(toks) and toks[i][1] == "{":
                    d, j = 0, i
                    while True:
                        if toks[j][1] == "{":
                            d += 1
                        elif toks[j][1] == "}":
                            d -= 1
                            if d == 0:
                                break
                        j += 1
                    f.body = toks[i + 1 : j]
                    f.has_body = True
                    i = j + 1
                if f.name not in self.funcs or f.has_body:
                    self.funcs[f.name] = f
                continue
            if re.search(r"\.(global|const|shared)\b", s):
                v = parse_var(s)
                v.extern = ".extern" in s
                self.vars[v.name] = v
            i += 1

    def _header(self, s):
        is_entry = bool(re.search(r"\.entry\b", s))
        m = re.search(r"\.(?:entry|func)\b(.*)$", s, re.S)
        rest = m[1].strip()
        rets = []
        if not is_entry and rest.startswith("("):
            j = rest.index(")")
            rets = [parse_var(x) for x in _split_commas(rest[1:j])]
            rest = rest[j + 1 :].strip()
        m = re.match(r"([\w$]+)\s*(\((.*?)\))?", rest, re.S)
        name = m[1]
        params = [
            parse_var(
                re.sub(r"\.ptr\b(\s*\.(global|shared|local|const))?(\s*\.align\s+\d+)?", "", x)
            )
            for x in _split_commas(m[3] or "")
        ]
        attrs = {}
        for a in ("maxntid", "reqntid", "reqnctapercluster"):
            mm = re.search(r"\." + a + r"\s+([\d,\s]+)", rest)
            if mm:
                attrs[a] = [int(x) for x in mm[1].replace(" ", "").strip().strip(",").split(",")]
        return Func(name, is_entry, params, rets, attrs=attrs)


class Flattener:
    """Builds a Program for one entry."""

    def __init__(self, parsed, name):
        self.P = parsed
        self.f = parsed.funcs[name]
        self.regbits, self.regnames = [], []
        self.special, self.local, self.shared = {}, {}, {}
        self.extern_shared = set()
        self.local_size = 0
        self.out, self.labels, self.fix = [], {}, []
        self.uid = 0
        off, self.params = 0, []
        for p in self.f.params:
            al = max(p.align, 1)
            off = (off + al - 1) // al * al
            self.params.append((p.name, off, p.size, al))
            off += p.size
        self.param_size = off
        for v in parsed.vars.values():
            if v.space == "shared":
                if v.size == 0 or getattr(v, "extern", False):
                    self.extern_shared.add(v.name)
                else:
                    self.shared[v.name] = v
        self.emit_func(self.f, {}, [], None)
        so = 0
        used = self.used_shared()
        for v in self.shared.values():
            if v.name not in used:
                continue
            so = (so + v.align - 1) // v.align * v.align
            v.offset = so
            so += v.size
        self.shared_static = so
        for ins, lab in self.fix:
            if lab not in self.labels:
                raise PTXError(f"{name}: unknown label {lab[1]}")
            ins.target = self.labels[lab]

    def used_shared(self):
        used = set()

        def walk(a):
            if isinstance(a, Sym):
                used.add(a.name)
            elif isinstance(a, Vec):
                for x in a.items:
                    walk(x)
            elif isinstance(a, Addr):
                walk(a.base)

        for i in self.out:
            for a in i.args:
                walk(a)
        return used

    def program(self):
        return Program(
            self.f.name,
            self.out,
            len(self.regbits),
            self.regbits,
            self.regnames,
            self.special,
            self.shared,
            self.shared_static,
            self.extern_shared,
            self.local,
            self.local_size,
            self.params,
            self.param_size,
            self.f.attrs,
        )

    def newreg(self, name, bits):
        self.regbits.append(bits)
        self.regnames.append(name)
        return Reg(len(self.regbits) - 1, bits, name)

    def add_local(self, v):
        self.uid += 1
        key = f"{v.name}@{self.uid}"
        off = (self.local_size + 15) // 16 * 16
        self.local[key] = Var(key, "local", v.align, v.size, offset=off)
        self.local_size = off + max(v.size, 1)
        return key

    # -- function bodies ------------------------------------------------------------------
    def emit_func(self, f, symmap, chain, end_label):
        """Inline f's body; symmap renames its .param symbols to local variables."""
        if f.name in chain:
            raise PTXError(f"recursive call of {f.name} is not supported")
        self.uid += 1
        inst = self.uid
        scopes = [dict(symmap)]
        ranges = [{}]
        self.scope_labels = getattr(self, "scope_labels", {})

        # pre-pass: label scoping. PTX labels are local to their {} block.
        scope_ids, cnt, stack = [], 0, [0]
        visible = {}
        for line, s in f.body:
            if s == "{":
                cnt += 1
                visible.setdefault(cnt, stack[-1])
                stack.append(cnt)
            elif s == "}":
                stack.pop()
            scope_ids.append(stack[-1])
        defs = {}
        for (line, s), sc in zip(f.body, scope_ids):
            if s.endswith(":"):
                defs[(sc, s[:-1])] = (inst, sc, s[:-1])

        def find_label(sc, lab):
            while True:
                if (sc, lab) in defs:
                    return defs[(sc, lab)]
                if sc == 0:
                    return (inst, 0, lab)
                sc = visible[sc]

        def lookup(nm):
            for sc, rg in zip(reversed(scopes), reversed(ranges)):
                if nm in sc:
                    return sc[nm]
                m = re.match(r"^(.*?)(\d+)$", nm)
                if m:
                    # the longest prefix that was declared as a range
                    for k in range(len(m[1]), len(nm)):
                        pre, num = nm[:k], nm[k:]
                        if pre in rg and (num == "0" or num[0] != "0") and int(num) < rg[pre][0]:
                            r = self.newreg(nm, rg[pre][1])
                            sc[nm] = r
                            return r
            if nm.startswith("%") and re.match(
                r"^%(tid|ntid|ctaid|nctaid|laneid|warpid|nwarpid|smid|nsmid|gridid|clock|clock64|clock_hi|globaltimer\w*|"
                r"lanemask_\w+|dynamic_smem_size|total_smem_size|cluster_\w+|clusterid|nclusterid|is_explicit_cluster|"
                r"envreg\d+|pm\d)(\.[xyzw])?$",
                nm,
            ):
                if nm not in self.special:
                    r = self.newreg(
                        nm, 64 if nm in SPECIAL64 else (1 if nm == "%is_explicit_cluster" else 32)
                    )
                    self.special[nm] = r
                return self.special[nm]
            return None

        def operand(s):
            s = s.strip()
            if s == "_":
                return SINK
            if s.startswith("{"):
                return Vec([operand(x) for x in _split_commas(s[1:-1])])
            if s.startswith("["):
                inner = s[1:-1].strip()
                parts = _split_commas(inner)
                coords = None
                if len(parts) > 1:
                    coords = [operand(x) for x in parts[1:]]
                    inner = parts[0]
                m = re.match(r"^([\w$%.]+)\s*(?:([+-])\s*(-?\s*\w+))?$", inner)
                if not m:
                    raise PTXError(f"bad address {s}")
                off = 0
                if m[3]:
                    off = parse_imm(m[3].replace(" ", "")).value
                    off = -off if m[2] == "-" else off
                b = operand(m[1])
                if isinstance(b, Imm):
                    return Addr(None, b.value + off, coords)
                if isinstance(b, Sym):
                    return Addr(Sym(b.name, b.off), off, coords)
                return Addr(b, off, coords)
            if s.startswith("!"):
                return Neg(operand(s[1:]))
            if "|" in s:
                a, b = s.split("|")
                return Pair(operand(a), operand(b))
            im = parse_imm(s)
            if im is not None:
                return im
            if s == "WARP_SZ":
                return Imm(32)
            r = lookup(s)
            if r is not None:
                return r
            m = re.match(r"^([\w$%.]+)\s*\+\s*(\w+)$", s)
            if m:
                b = operand(m[1])
                return Sym(b.name, b.off + parse_imm(m[2]).value)
            m = re.match(r"^([\w$%]+)\.([xyzw])$", s)
            return Sym(s)

        for (line, s), sc in zip(f.body, scope_ids):
            if s == "{":
                scopes.append({})
                ranges.append({})
                continue
            if s == "}":
                scopes.pop()
                ranges.pop()
                continue
            if s.endswith(":"):
                self.labels[find_label(sc, s[:-1])] = len(self.out)
                continue
            if s.startswith(".reg"):
                m = re.match(r"\.reg\s*(?:\.v[24]\s+)?\.(\w+)\s+(.*)$", s, re.S)
                bits = BITS[m[1]]
                for nm in _split_commas(m[2]):
                    nm = nm.strip()
                    mm = re.match(r"^([\w$%]+)<(\d+)>$", nm)
                    if mm:
                        ranges[-1][mm[1]] = (int(mm[2]), bits)
                    else:
                        scopes[-1][nm] = self.newreg(nm, bits)
                continue
            if s.startswith((".local", ".param")):
                v = parse_var(s)
                scopes[-1][v.name] = Sym(self.add_local(v))
                continue
            if s.startswith(".shared"):
                v = parse_var(s)
                self.uid += 1
                v.name, nm = f"{v.name}@{self.uid}", v.name
                if nm in [x.split("@")[0] for x in self.shared] and len(
                    chain
                ):  # same function inlined twice
                    for k in self.shared:
                        if k.split("@")[0] == nm:
                            v = self.shared[k]
                self.shared[v.name] = v
                scopes[-1][nm] = Sym(v.name)
                continue
            if (
                s.startswith(
                    (
                        ".loc ",
                        ".loc\t",
                        ".pragma",
                        ".file",
                        ".branchtargets",
                        ".callprototype",
                        ".calltargets",
                    )
                )
                or not s
            ):
                continue
            # instruction
            pred, neg, t = None, False, s
            m = re.match(r"^@\s*(!?)\s*([\w$%.]+)\s+(.*)$", t, re.S)
            if m:
                neg, pred, t = m[1] == "!", lookup(m[2]), m[3]
                if pred is None:
                    raise PTXError(f"line {line}: unknown predicate in {s}")
            m = re.match(r"^([\w.:]+)\s*(.*)$", t, re.S)
            if not m:
                raise PTXError(f"line {line}: cannot parse {s}")
            op, rest = m[1], m[2].strip()
            txt = re.sub(r"\s+", " ", s)
            if op == "call" or op.startswith("call."):
                self.emit_call(f, rest, operand, pred, neg, chain, line, txt)
                continue
            ins = Ins(op, op.split("."), [], pred, neg, txt, line)
            if op.startswith("bra"):
                self.fix.append((ins, find_label(sc, rest)))
            elif op == "ret" and end_label is not None:
                ins.op, ins.parts = "bra", ["bra"]
                self.fix.append((ins, end_label))
            else:
                ins.args = [operand(x) for x in _split_commas(rest)]
            self.out.append(ins)
        if end_label is not None:
            self.labels[end_label] = len(self.out)
            self.out.append(Ins("nop", ["nop"], [], text="<end of inlined %s>" % f.name))
        else:
            self.out.append(Ins("exit", ["exit"], [], text="<end of kernel>"))

    def emit_call(self, f, rest, operand, pred, neg, chain, line, txt):
        parts = _split_commas(rest)
        rets = []
        if parts[0].startswith("("):
            rets = [operand(x) for x in _split_commas(parts[0][1:-1])]
            parts = parts[1:]
        name = parts[0]
        args = (
            [operand(x) for x in _split_commas(parts[1][1:-1])]
            if len(parts) > 1 and parts[1].startswith("(")
            else []
        )
        g = self.P.funcs.get(name)
        if g is None or not g.has_body:
            self.out.append(Ins("extcall", ["extcall", name], rets + args, pred, neg, txt, line))
            return
        symmap = {}
        for formal, actual in list(zip(g.params, args)) + list(zip(g.rets, rets)):
            symmap[formal.name] = actual
        self.uid += 1
        end = ("end", self.uid, name)
        if pred is not None:
            skip = Ins("bra", ["bra"], [], pred, not neg, txt, line)
            self.fix.append((skip, end))
            self.out.append(skip)
        self.emit_func(g, symmap, chain + [f.name], end)
