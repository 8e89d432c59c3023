"""YAML whose values know their line, so that a complaint about a recipe can name it.

Read with PyYAML's safe loader; beyond it, a key may occur only once in a mapping (PyYAML keeps the
last one silently), and aliases may not explode (nine lines of YAML can mean a billion values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featpipe.errors import RecipeError
from featpipe.lazy import Lazy

yaml = Lazy("yaml")  # a sixth of the time of `--help`

_MAX_CHARACTERS = 1_000_000
_MAX_VALUES = 20_000  # the longest recipe that comes with featpipe has 300
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Located:
    """A value and its line."""

    value: Any  # scalar, list of Located, or dict of str to Located
    line: int  # from 1; that of the key if it is the value of one; 0 outside a file

    def plain(self) -> Any:
        """Return the value as YAML's safe loader would."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


def locate(value: Any, line: int = 0) -> Located:
    """Return a plain value as :class:`Located`, all of it at one line."""
    if isinstance(value, dict):
        return Located({str(key): locate(item, line) for key, item in value.items()}, line)
    if isinstance(value, list | tuple):
        return Located([locate(item, line) for item in value], line)
    return Located(value, line)


def read_located(text: str, where: str) -> Located:
    r"""Parse a YAML document; ``where`` names the file in the messages of a RecipeError.

    Examples
    --------
    >>> read_located("a: 1\nb: [2, 3]", "x.yaml").value["b"].line
    2
    """
    if len(text) > _MAX_CHARACTERS:
        what, most = "The file is too long for a recipe.", f"at most {_MAX_CHARACTERS} characters"
        raise RecipeError(what, where=where, expected=most, got=len(text))
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return Located(None, 1) if node is None else _Walk(loader, where).visit(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"This is not YAML: {error.problem}.", where=f"{where}{line}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError("This is not YAML.", where=where, got=error) from error
    except RecursionError:
        raise RecipeError("The YAML is nested too deeply.", where=where) from None


@dataclass
class _Walk:
    """Turns PyYAML's nodes into located values, counting what aliases repeat."""

    loader: Any  # yaml.SafeLoader
    where: str
    visited: int = 0

    def visit(self, node: Any, line: int | None = None) -> Located:
        """Return the value of a node; ``line`` is that of its key."""
        line = line or node.start_mark.line + 1
        self.visited += 1
        if self.visited > _MAX_VALUES:
            expected = f"at most {_MAX_VALUES} values once every *alias is written out"
            raise self._error("The aliases of the YAML explode.", line, expected=expected)
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise self._error(f"The tag {node.tag!r} is not allowed.", line)
        if isinstance(node, yaml.SequenceNode):
            return Located([self.visit(item) for item in node.value], line)
        if isinstance(node, yaml.ScalarNode):
            return Located(self.loader.construct_object(node), line)
        assert isinstance(node, yaml.MappingNode)
        own: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != _MERGE:
                name, at = self.visit(key).value, key.start_mark.line + 1
                if not isinstance(name, str):
                    got = key.value if isinstance(key, yaml.ScalarNode) else "a collection"
                    raise self._error("A key has to be a text.", at, got=got)
                if name in own:
                    place = f"{self.where}, lines {own[name]} and {at}"
                    raise RecipeError(f"The key {name!r} occurs twice.", where=place)
                own[name] = at
        self.loader.flatten_mapping(node)  # puts what '<<' takes over before the node's own keys
        values = {k.value: self.visit(v, k.start_mark.line + 1) for k, v in node.value}
        return Located(values, line)

    def _error(self, what: str, line: int, **details: Any) -> RecipeError:
        return RecipeError(what, where=f"{self.where}, line {line}", **details)
