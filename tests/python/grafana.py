"""Holds dashboards against the schema that Grafana publishes: no field that it does not know, no value of another type.

    grafana.py FILE…
"""

import enum
import json
import sys
import types
import typing
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(have, kept, path):
    """Fields that reading and writing by the schema does not keep. `null` is a field that is not there."""
    match have:
        case dict() if isinstance(kept, dict):
            for name, value in have.items():
                yield from lost(value, kept.get(name), f"{path}.{name}")
        case list() if isinstance(kept, list) and len(kept) == len(have):
            for index, pair in enumerate(zip(have, kept)):
                yield from lost(*pair, f"{path}[{index}]")
        case _ if have is not None and have != kept:
            yield f"{path}: {have!r} is not known"


def mistyped(value, hint, path):
    """Values that are not what the schema's types say."""
    hints = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if hasattr(value, "to_json"):
        # Its class is what was read, and may say more than what holds it does: the options of a kind of panel.
        for name, own in typing.get_type_hints(type(value)).items():
            yield from mistyped(getattr(value, name), own, f"{path}.{name}")
        return
    if any(fits(value, one) for one in hints):
        return
    inside = [typing.get_args(one)[-1] for one in hints if typing.get_origin(one) is type(value)]
    if not inside:
        yield f"{path}: {value!r} is no {hint}"
        return
    for name, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield from mistyped(one, inside[0], f"{path}[{name}]")


def fits(value, hint):
    """True if what has no parts is of a type."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) or not isinstance(hint, type):
        return hint is typing.Any
    if issubclass(hint, enum.Enum):
        return value in [one.value for one in hint]
    if isinstance(value, bool):
        return hint in (bool, object)
    return isinstance(value, (int, float) if hint is float else hint)


def unknown(dashboard, path):
    """Panels of a kind whose options the schema does not have: they were left as they stand in the file."""
    for index, panel in enumerate(dashboard.panels):
        if isinstance(getattr(panel, "options", None), dict):
            yield f"{path}.panels[{index}]: {panel.type_val!r} is no kind of panel"


def main(files):
    register_default_plugins()
    wrong = []
    for file in files:
        have = json.loads(Path(file).read_text())
        dashboard = Dashboard.from_json(have)
        name = Path(file).name
        wrong += lost(have, json.loads(JSONEncoder().encode(dashboard)), name)
        wrong += mistyped(dashboard, Dashboard, name)
        wrong += unknown(dashboard, name)
        print(f"{name}: {len(dashboard.panels)} panels")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main(sys.argv[1:])
