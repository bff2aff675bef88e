"""The rows of one transaction: loaded once, changed in memory, written back together.

Rows have the models' attributes and are plain values. An object that is mapped costs more to load,
to make and to write than the database takes for it, and somebody waits for every change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Connection, Table
from sqlmodel import SQLModel

from manifest_cache.statements import statements

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
        table: Table = model.__table__  # type: ignore[attr-defined]
        self._statements = statements(table, connection.dialect)
        self._keys = [column.name for column in table.primary_key]
        self._attributes = _attributes(model)
        self._loaded: list[tuple[Model, dict[str, Any]]] = []
        self._new: list[Model] = []

    def load(self, attribute: str, values: Collection[Any]) -> list[Model]:
        """The stored rows whose attribute has one of these values; each row is loaded only once."""
        found = []
        for stored in self._statements.select(self._connection, attribute, values):
            original = dict(zip(self._attributes.values(), stored, strict=True))
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
        self._statements.delete(self._connection, attribute, stored)

    def write(self) -> None:
        """Stores what is new or changed; to be called once, at the end."""
        self._statements.insert(self._connection, [self._columns_of(vars(row)) for row in self._new])
        self._statements.update(
            self._connection,
            [
                (self._key_of(original), self._columns_of(changed))
                for row, original in self._loaded
                if (changed := _difference(original, vars(row)))
            ],
        )

    def _columns_of(self, said: Mapping[str, Any]) -> dict[str, Any]:
        return {name: said[attribute] for name, attribute in self._attributes.items() if attribute in said}

    def _key_of(self, original: Mapping[str, Any]) -> dict[str, Any]:
        return {name: original[self._attributes[name]] for name in self._keys}


def _difference(original: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    if now == original:
        return {}
    return {name: value for name, value in now.items() if value != original[name]}


_known_attributes: dict[type[SQLModel], dict[str, str]] = {}


def _attributes(model: type[SQLModel]) -> dict[str, str]:
    """The attribute of each column, in the table's order: of its name, but where SQLAlchemy reserves that."""
    if model not in _known_attributes:
        mapper = model.__mapper__  # type: ignore[attr-defined]
        columns = mapper.local_table.columns
        _known_attributes[model] = {
            column.name: mapper.get_property_by_column(column).key for column in columns
        }
    return _known_attributes[model]
