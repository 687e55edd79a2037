"""YAML as a small tree that knows its lines, streamed from libyaml's events: 200,000 mappings in seconds."""

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import yaml

_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = _TAG + "str"
NESTING_MAX: Final = 32
"""Levels of lists and mappings in each other, those that aliases stand for included."""
_TOO_DEEP: Final = f"this is more than {NESTING_MAX} lists and mappings in each other"
ALIASED_MAX: Final = 100_000
"""Values that all aliases of a file stand for: with aliases in what others stand for, a kilobyte could be a billion."""


class ScenarioError(ValueError):
    """A file that is no scenario. `line` counts from 1; `reason` says what was expected."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class Scalar:
    """A value without parts. `kind`: str, int, float, bool, null, or another of YAML's."""

    __slots__ = ("kind", "line", "text")

    def __init__(self, line: int, kind: str, text: str) -> None:
        self.line: Final = line
        self.kind: Final = kind
        self.text: Final = text


class Table:
    """A mapping from text, each key once. `lines` has each key's line."""

    __slots__ = ("entries", "line", "lines")

    def __init__(self, line: int) -> None:
        self.line: Final = line
        self.entries: Final[dict[str, Tree]] = {}
        self.lines: Final[dict[str, int]] = {}


class List:
    """A sequence."""

    __slots__ = ("items", "line")

    def __init__(self, line: int) -> None:
        self.line: Final = line
        self.items: Final[list[Tree]] = []


Tree = Scalar | Table | List


def parse_tree(text: str) -> Tree:
    """Return the one document of a YAML text; raise `ScenarioError` if it is none, or holds something else than text
    keys, lists and plain values."""
    loader = yaml.CSafeLoader(text)
    try:
        return _build(loader, _events(loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        # PyYAML's own limit, from 6.0.4 on: it looks ahead, and so may find it before the count below does
        too_deep = error.problem == "exceeded maximum nesting depth"
        raise ScenarioError(line, _TOO_DEEP if too_deep else f"this is not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        raise ScenarioError(line, f"this is not YAML: {error.reason}") from error
    finally:
        loader.dispose()


def _events(loader: yaml.CSafeLoader) -> Iterator[Any]:
    """Libyaml's events; PyYAML's types do not say what each of them has."""
    while loader.check_event():
        yield loader.get_event()


def _measure(tree: Tree, most: int) -> tuple[int, int]:
    """Return how many values a tree has, all that aliases stand for counted each time, and its levels; stops counting
    when there are more than `most`."""
    count, levels = 0, 0
    waiting = [(tree, 0)]
    while waiting and count <= most:
        each, level = waiting.pop()
        count += 1
        levels = max(levels, level)
        if not isinstance(each, Scalar):
            parts = each.items if isinstance(each, List) else each.entries.values()
            waiting.extend((part, level + 1) for part in parts)
    return count, levels


def _build(loader: yaml.CSafeLoader, events: Iterator[Any]) -> Tree:
    root: Tree | None = None
    stack: list[tuple[Table | List, str | None]] = []
    inside: Table | List | None = None
    key: str | None = None
    anchors: dict[str, Tree] = {}
    words: dict[str, str] = {}
    aliased = 0
    resolve: Callable[[type, str, tuple[bool, bool]], str] = loader.resolve
    for event in events:
        tree: Tree
        kind = type(event)
        if kind is yaml.ScalarEvent:
            line = event.start_mark.line + 1
            text = event.value
            if type(inside) is Table and key is None:
                if text not in words:
                    if (event.tag or resolve(yaml.ScalarNode, text, event.implicit)) != _TEXT:
                        raise ScenarioError(line, f"a key is text, not {text!r}")
                    words[text] = text
                if text in inside.entries:
                    raise ScenarioError(line, f"the key {text!r} is here twice")
                key = words[text]
                inside.lines[key] = line
                continue
            tag = event.tag or resolve(yaml.ScalarNode, text, event.implicit)
            tree = Scalar(line, tag.removeprefix(_TAG), text)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            line = event.start_mark.line + 1
            if event.tag is not None:
                raise ScenarioError(line, "a scenario has no tags: leave it out")
            if type(inside) is Table and key is None:
                raise ScenarioError(line, "a key is text")
            if len(stack) >= NESTING_MAX:
                raise ScenarioError(line, _TOO_DEEP)
            tree = Table(line) if kind is yaml.MappingStartEvent else List(line)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            stack.pop()
            inside, key = stack[-1] if stack else (None, None)
            continue
        elif kind is yaml.AliasEvent:
            line = event.start_mark.line + 1
            if event.anchor not in anchors or (type(inside) is Table and key is None):
                raise ScenarioError(line, f"there is no value &{event.anchor} before this")
            tree = anchors[event.anchor]
            if any(tree is each for each, _ in stack):
                raise ScenarioError(line, f"&{event.anchor} cannot be a part of itself")
            count, levels = _measure(tree, ALIASED_MAX - aliased)
            aliased += count
            if aliased > ALIASED_MAX:
                raise ScenarioError(line, f"aliases stand for more than {ALIASED_MAX} values: write them out")
            if len(stack) + levels > NESTING_MAX:
                raise ScenarioError(line, f"with *{event.anchor} this is more than {NESTING_MAX} levels deep")
        elif kind is yaml.DocumentStartEvent and root is not None:
            raise ScenarioError(event.start_mark.line + 1, "a file holds one scenario: write the next into its own")
        else:
            continue
        if event.anchor is not None and kind is not yaml.AliasEvent:
            anchors[event.anchor] = tree
        if type(inside) is Table:
            inside.entries[str(key)] = tree
            key = None
        elif type(inside) is List:
            inside.items.append(tree)
        else:
            root = tree
        if kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            if stack:
                stack[-1] = (stack[-1][0], key)
            inside = cast(Table | List, tree)
            stack.append((inside, None))
            key = None
    if root is None:
        raise ScenarioError(1, "the file is empty: a scenario is a mapping with name, devices and events")
    return root
