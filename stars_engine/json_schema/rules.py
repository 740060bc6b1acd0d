"""Write nodes as grammar rules in llguidance's variant of Lark syntax.

Every prefix that the grammar allows can be completed to a value. Values that cannot be completed (a
required property that contains itself, names that no string can have) are left out.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from typing import Any

from stars_engine.json_schema import numbers
from stars_engine.json_schema.forms import Form, children, located
from stars_engine.json_schema.intersections import TooComplexError
from stars_engine.json_schema.layout import Layout
from stars_engine.json_schema.multiples import multiples
from stars_engine.json_schema.nodes import (
    ANY,
    Alternative,
    Array,
    Bool,
    Node,
    Null,
    Number,
    Object,
    Reference,
    String,
)
from stars_engine.json_schema.objects import Others, laid_out
from stars_engine.json_schema.patterns import NOTHING, between_quotes, written
from stars_engine.json_schema.sequences import items, properties
from stars_engine.json_schema.supported import SupportedSchema
from stars_engine.threads.give_way import give_way

_MAX_DEPTH = 1_000


class UnsatisfiableError(ValueError):
    """No value satisfies a schema."""


class Rules:
    """Writes the rules of one schema.

    Args:
        schema: What is written.
        name: Name of the first rule, and prefix of the names of all others.
        layout: Punctuation and whitespace.
        is_empty: Whether a terminal expression matches nothing.
    """

    def __init__(
        self, schema: SupportedSchema, name: str, layout: Layout, is_empty: Callable[[str], bool]
    ) -> None:
        self._schema, self._name, self._layout = schema, name, layout
        self._is_empty = is_empty
        self._prefix = name.upper()
        self._terminals: dict[str, str] = {}
        self._nodes: dict[Any, Node] = {}  # by key; alive, as keys are identities
        self._forms: dict[Any, list[Form]] = {}
        self._productive: set[Any] = set()
        self._rule_names: dict[Any, str] = {}
        self._unwritten: deque[tuple[Any, str]] = deque()
        self._lines: list[str] = []
        self._defined: dict[str, str] = {}

    def write(self) -> list[str]:
        """Return all rules and terminals.

        Raises:
            UnsatisfiableError: No value satisfies the schema.
            TooComplexError: The schema is too complex for a grammar.
        """
        root = self._schema.root
        self._find_forms(root)
        self._find_productive()
        if not self._is_productive(root):
            raise UnsatisfiableError(f"no value satisfies the schema: {self._why_none(root)}")
        self._lines.append(f"{self._name}: {self._rule(root)}")
        while self._unwritten:
            give_way()
            key, name = self._unwritten.popleft()
            alternatives = [self._written(form) for form in self._forms[key]]
            kept = dict.fromkeys(text for text in alternatives if text is not None)
            self._lines.append(f"{name}: {' | '.join(kept)}")
        self._check_depth()
        ends = [f"{name}: {source}" for source, name in self._terminals.items()]
        return [*self._lines, *ends, *self._layout.terminals(self._prefix)]

    def _check_depth(self) -> None:
        """Refuse rules that are nested more deeply than the library's stack."""
        inner: dict[str, list[str]] = {}
        for line in self._lines:
            name, _, source = line.partition(": ")
            inner[name] = re.findall(rf"\b{self._name}_s?[0-9]+\b", source)
        seen = {self._name}
        path = [iter(inner[self._name])]
        while path:
            following = next(path[-1], None)
            if following is None:
                path.pop()
            elif following not in seen and following in inner:
                seen.add(following)
                path.append(iter(inner[following]))
                if len(path) > _MAX_DEPTH:
                    raise TooComplexError("`$ref` or `properties` are nested too deeply")

    # --- forms ---

    def _key(self, node: Node) -> Any:
        if len(node) == 1 and isinstance(node[0], Reference):
            return node[0].names
        self._nodes[id(node)] = node
        return id(node)

    def _find_forms(self, root: Node) -> None:
        todo = [(root, "#")]
        while todo:
            give_way()
            node, path = todo.pop()
            key = self._key(node)
            if key in self._forms:
                continue
            self._forms[key] = forms = []
            for part in node:
                dereference = self._schema.dereference
                for inner in dereference(part) if isinstance(part, Reference) else (part,):
                    try:
                        form = self._form(inner)
                    except ValueError as error:
                        raise located(error, path) from None
                    forms += [] if form is None else [form]
            for form in forms:
                todo += [(inner, f"{path}/{step}") for step, inner in children(form)]

    def _form(self, alternative: Alternative) -> Form | None:
        match alternative:
            case Array():
                items = ANY if alternative.items is None else alternative.items
                arr = Array(alternative.prefix, items, alternative.min_items, alternative.max_items)
                return Form(array=arr)
            case Object():
                fields, others = laid_out(
                    alternative, self._schema.intersections, self._schema.dereference
                )
                if others and alternative.min_properties > len(fields) + 1:
                    raise TooComplexError("`minProperties`: a grammar cannot compare names")
                named = [(t, o.node) for o in others if (t := self._key_terminal(o)) is not None]
                return Form(obj=alternative, fields=tuple(fields), others=tuple(named))
            case Reference():
                return None
        leaf = self._leaf(alternative)
        return None if leaf is None else Form(leaf=leaf)

    def _key_terminal(self, others: Others) -> str | None:
        return None if self._is_empty(others.key) else self._terminal(others.key)

    def _terminal(self, source: str) -> str:
        name = self._terminals.get(source)
        if name is None:
            name = self._terminals[source] = f"{self._prefix}_T{len(self._terminals)}"
        return name

    # --- single values ---

    def _leaf(self, alternative: Alternative) -> str | None:
        match alternative:
            case Null():
                return self._terminal('"null"')
            case Bool(values):
                words = [json.dumps(value) for value in sorted(values)]
                return self._terminal(" | ".join(f'"{word}"' for word in words))
            case Number():
                if alternative.multiple_of is not None and alternative.values is None:
                    return self._multiples(alternative)
                source = numbers.expression(alternative)
                return None if source is None else self._terminal(source)
            case String():
                return self._string(alternative)
        return None

    def _multiples(self, number: Number) -> str | None:
        found = multiples(number)
        parts = [] if found.rule is None else [found.rule]
        if found.listed is not None:
            parts.append(self._terminal(found.listed))
        return f"({' | '.join(parts)})" if parts else None

    def _string(self, string: String) -> str | None:
        if string.values is not None:
            texts = [json.dumps(written(value), ensure_ascii=False) for value in string.values]
            return self._terminal(" | ".join(texts)) if texts else None
        lengths = (string.min_length, string.max_length)
        inner = between_quotes(string.patterns, string.avoided, lengths)
        if inner == NOTHING:
            return None
        source = f'"\\"" {inner} "\\""'
        if (string.patterns or string.avoided) and self._is_empty(source):
            return None
        return self._terminal(source)

    # --- which values can be completed ---

    def _is_productive(self, node: Node) -> bool:
        return self._key(node) in self._productive

    def _find_productive(self) -> None:
        found = True
        while found:
            found = False
            for key in reversed(self._forms):  # inner nodes come later
                if key not in self._productive and any(map(self._can_end, self._forms[key])):
                    self._productive.add(key)
                    found = True

    def _can_end(self, form: Form) -> bool:
        if form.leaf is not None:
            return True
        if form.array is not None:
            arr = form.array
            needed = [*arr.prefix[: arr.min_items]]
            if arr.min_items > len(arr.prefix) and arr.items is not None:
                needed.append(arr.items)
            return all(map(self._is_productive, needed))
        assert form.obj is not None
        if not all(self._is_productive(f.node) for f in form.fields if f.is_required):
            return False
        num_required = sum(field.is_required for field in form.fields)
        num_fields = sum(self._is_productive(field.node) for field in form.fields)
        has_others = any(self._is_productive(node) for _, node in form.others)
        least, most = form.obj.min_properties, form.obj.max_properties
        if most is not None and max(least, num_required) > most:
            return False
        return least <= num_fields + has_others

    def _why_none(self, node: Node) -> str:
        """Describe where a value cannot be completed."""
        path, seen = "#", set()
        while (key := self._key(node)) not in seen and self._forms[key]:
            seen.add(key)
            form = self._forms[key][0]
            wanted = {f.name for f in form.fields if f.is_required}
            steps = [s for s in children(form) if form.array is not None or s[0] in wanted]
            missing = [step for step in steps if not self._is_productive(step[1])]
            if not missing:
                return f"no number of properties is possible at {path}"
            path, node = f"{path}/{missing[0][0]}", missing[0][1]
        if self._forms[key]:
            return f"values at {path} would be infinitely deep"
        emptied = ", ".join(self._schema.emptied[:3])
        return f"no value is possible at {path}" + (f" ({emptied})" if emptied else "")

    # --- rules ---

    def _rule(self, node: Node) -> str:
        key = self._key(node)
        if key not in self._rule_names:
            forms = self._forms[key]
            if len(forms) == 1 and forms[0].leaf is not None:
                return forms[0].leaf
            name = self._rule_names[key] = f"{self._name}_{len(self._rule_names)}"
            self._unwritten.append((key, name))
        return self._rule_names[key]

    def _written(self, form: Form) -> str | None:
        if not self._can_end(form):
            return None
        if form.leaf is not None:
            return form.leaf
        return self._array(form.array) if form.array is not None else self._object(form)

    def _define(self, source: str) -> str:
        if source.isidentifier():
            return source
        name = self._defined.get(source)
        if name is None:
            name = self._defined[source] = f"{self._name}_s{len(self._defined)}"
            self._lines.append(f"{name}: {source}")
        return name

    def _array(self, arr: Array) -> str:
        prefix: list[str] = []
        most = arr.max_items
        for node in arr.prefix:
            if not self._is_productive(node):
                most = len(prefix)
                break
            prefix.append(self._rule(node))
        rest = None
        if most != len(prefix) and arr.items is not None and self._is_productive(arr.items):
            rest = self._rule(arr.items)
        comma = f"{self._prefix}_COMMA"
        inner, may_be_empty = items(prefix, rest, (arr.min_items, most), comma, self._define)
        return self._enclosed("A", "[]", inner, may_be_empty=may_be_empty)

    def _object(self, form: Form) -> str:
        colon, comma = f"{self._prefix}_COLON", f"{self._prefix}_COMMA"
        fields = []
        for field in form.fields:
            if self._is_productive(field.node):
                name = json.dumps(written(field.name), ensure_ascii=False)
                text = self._define(f"{name} {colon} {self._rule(field.node)}")
                fields.append((text, field.is_required))
        pairs = [
            f"{key} {colon} {self._rule(node)}"
            for key, node in form.others
            if self._is_productive(node)
        ]
        others = self._define(" | ".join(pairs)) if pairs else None
        assert form.obj is not None
        counts = (form.obj.min_properties, form.obj.max_properties)
        inner, may_be_empty = properties(fields, others, counts, comma, self._define)
        return self._enclosed("O", "{}", inner, may_be_empty=may_be_empty)

    def _enclosed(self, kind: str, ends: str, inner: str | None, *, may_be_empty: bool) -> str:
        opened = f"{self._prefix}_OPEN_{kind}"
        forms = []
        if may_be_empty:
            forms.append(f'{opened} "{ends[1]}"')
        if inner is not None:
            forms.append(f"{opened} ({inner}) {self._prefix}_CLOSE_{kind}")
        assert forms, "it can end, so there is something to write"
        return " | ".join(forms)
