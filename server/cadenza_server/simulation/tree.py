"""YAML as a small tree that knows its lines, streamed from libyaml's events: 200,000 mappings in seconds."""

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import yaml

_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = _TAG + "str"


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
        raise ScenarioError(1 if mark is None else mark.line + 1, f"this is not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        raise ScenarioError(line, f"this is not YAML: {error.reason}") from error
    finally:
        loader.dispose()


def _events(loader: yaml.CSafeLoader) -> Iterator[Any]:
    """Libyaml's events; PyYAML's types do not say what each of them has."""
    while loader.check_event():
        yield loader.get_event()


def _build(loader: yaml.CSafeLoader, events: Iterator[Any]) -> Tree:
    root: Tree | None = None
    stack: list[tuple[Table | List, str | None]] = []
    inside: Table | List | None = None
    key: str | None = None
    anchors: dict[str, Tree] = {}
    words: dict[str, str] = {}
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
            tree = Table(line) if kind is yaml.MappingStartEvent else List(line)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            stack.pop()
            inside, key = stack[-1] if stack else (None, None)
            continue
        elif kind is yaml.AliasEvent:
            if event.anchor not in anchors or (type(inside) is Table and key is None):
                raise ScenarioError(event.start_mark.line + 1, f"there is no value &{event.anchor} before this")
            tree = anchors[event.anchor]
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
