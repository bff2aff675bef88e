"""The rows of one transaction: loaded once, changed in memory, written back together.

Rows have the models' attributes and are plain values. An object that is mapped costs more to load,
to make and to write than the database takes for it, and somebody waits for every change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update
from sqlmodel import SQLModel

# SQLite takes 32,766 variables in a statement, PostgreSQL 65,535; short statements are planned sooner.
_CHUNK = 500

Item = TypeVar("Item")
Model = TypeVar("Model", bound=SQLModel)


class _Row:
    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


class Rows(Generic[Model]):
    """The rows of one table that a transaction works on, new ones among them.

    `load` and `add` hand them out, the caller sets their attributes, `write` stores what is new or
    other than it was. Statements run on `connection`, in its transaction.
    """

    def __init__(self, connection: Connection, model: type[Model]) -> None:
        self._connection = connection
        self._table: Table = model.__table__  # type: ignore[attr-defined]
        self._attributes = _attributes(model)
        self._loaded: list[tuple[Model, dict[str, Any]]] = []
        self._new: list[Model] = []

    def load(self, attribute: str, values: Collection[Any]) -> list[Model]:
        """The stored rows whose attribute has one of these values; each row is loaded only once."""
        column = self._table.c[attribute]
        found = []
        for some in chunks(sorted(values)):
            for stored in self._connection.execute(select(self._table).where(column.in_(some))).mappings():
                original = {self._attributes[name]: value for name, value in stored.items()}
                row = cast(Model, _Row(original))
                self._loaded.append((row, original))
                found.append(row)
        return found

    def add(self, **values: Any) -> Model:
        """A new row; all columns without a default of the database must be given."""
        row = cast(Model, _Row(values))
        self._new.append(row)
        return row

    def remove(self, rows: Collection[Model], attribute: str) -> None:
        """Takes rows out of the table, found by a unique attribute, or out of those to be added."""
        gone = {id(row) for row in rows}
        new = {id(row) for row in self._new}
        self._new = [row for row in self._new if id(row) not in gone]
        self._loaded = [(row, original) for row, original in self._loaded if id(row) not in gone]
        stored = [getattr(row, attribute) for row in rows if id(row) not in new]
        column = self._table.c[attribute]
        for some in chunks(stored):
            self._connection.execute(delete(self._table).where(column.in_(some)))

    def write(self) -> None:
        """Stores what is new or changed; to be called once, at the end."""
        for some in chunks(self._new):
            self._connection.execute(insert(self._table), [self._values(row) for row in some])
        changed = [row for row, original in self._loaded if vars(row) != original]
        keys = [column.name for column in self._table.primary_key]
        for some in chunks(changed):
            self._connection.execute(self._update(keys), [self._parameters(row, keys) for row in some])

    def _update(self, keys: Sequence[str]) -> Any:
        names = [name for name in self._attributes if name not in keys]
        its = (self._table.c[name] == bindparam(f"its_{name}") for name in keys)
        return update(self._table).where(*its).values({name: bindparam(f"new_{name}") for name in names})

    def _parameters(self, row: Model, keys: Sequence[str]) -> dict[str, Any]:
        return {
            f"its_{name}" if name in keys else f"new_{name}": value
            for name, value in self._values(row).items()
        }

    def _values(self, row: Model) -> dict[str, Any]:
        said = vars(row)
        return {name: said[attribute] for name, attribute in self._attributes.items() if attribute in said}


_known_attributes: dict[type[SQLModel], dict[str, str]] = {}


def _attributes(model: type[SQLModel]) -> dict[str, str]:
    """The attribute of each column: named like it, but where SQLAlchemy reserves the name."""
    if model not in _known_attributes:
        mapper = model.__mapper__  # type: ignore[attr-defined]
        _known_attributes[model] = {attr.columns[0].name: attr.key for attr in mapper.column_attrs}
    return _known_attributes[model]


def chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in portions that fit into one statement."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
