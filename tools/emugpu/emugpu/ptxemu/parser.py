"""The functions and variables of a PTX module."""

import re

from .syntax import (
    Function,
    parse_variable,
    split_commas,
    split_statements,
    strip_comments,
)

_IGNORED = (
    *(".version", ".target", ".address_size", ".file", ".section", ".loc ", ".loc\t"),
    *(".pragma", ".alias"),
)


class Parsed:
    """Module-level contents of a PTX file."""

    def __init__(self, text: str) -> None:
        self.functions, self.variables = {}, {}
        self.target = ""
        statements = list(split_statements(strip_comments(text)))
        i = 0
        while i < len(statements):
            _, s = statements[i]
            if s.startswith(".target"):
                self.target = s.split()[1].strip(",")
            if not s or s.startswith(_IGNORED):
                i += 1
                continue
            if re.search(r"\.(entry|func)\b", s):
                f = self._header(s)
                i += 1
                if i < len(statements) and statements[i][1] == "{":
                    depth, j = 0, i
                    while True:
                        if statements[j][1] == "{":
                            depth += 1
                        elif statements[j][1] == "}":
                            depth -= 1
                            if depth == 0:
                                break
                        j += 1
                    f.body = statements[i + 1 : j]
                    f.has_body = True
                    i = j + 1
                if f.name not in self.functions or f.has_body:
                    self.functions[f.name] = f
                continue
            if re.search(r"\.(global|const|shared)\b", s):
                v = parse_variable(s)
                v.extern = ".extern" in s
                self.variables[v.name] = v
            i += 1

    def _header(self, s: str) -> Function:
        is_entry = bool(re.search(r"\.entry\b", s))
        m = re.search(r"\.(?:entry|func)\b(.*)$", s, re.S)
        rest = m[1].strip()
        results = []
        if not is_entry and rest.startswith("("):
            j = rest.index(")")
            results = [parse_variable(x) for x in split_commas(rest[1:j])]
            rest = rest[j + 1 :].strip()
        m = re.match(r"([\w$]+)\s*(\((.*?)\))?", rest, re.S)
        name = m[1]
        params = [
            parse_variable(
                re.sub(r"\.ptr\b(\s*\.(global|shared|local|const))?(\s*\.align\s+\d+)?", "", x)
            )
            for x in split_commas(m[3] or "")
        ]
        attributes = {}
        for a in ("maxntid", "reqntid", "reqnctapercluster"):
            mm = re.search(r"\." + a + r"\s+([\d,\s]+)", rest)
            if mm:
                attributes[a] = [
                    int(x) for x in mm[1].replace(" ", "").strip().strip(",").split(",")
                ]
        return Function(name, is_entry, params, results, attributes=attributes)
