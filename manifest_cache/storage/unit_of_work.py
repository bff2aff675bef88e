"""The rows of one transaction: loaded once, changed in memory, written back together.

UnitOfWork have the models' attributes and are plain values. An object that is mapped costs more to load,
to make and to write than the database takes for it, and somebody waits for every change.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Dialect, Table
from sqlmodel import SQLModel

from manifest_cache.storage.raw_rows import ReadTransaction
from manifest_cache.storage.raw_statements import Statements, statements

Model = TypeVar("Model", bound=SQLModel)


class _Row:
    def __init__(self, values: dict[str, Any]) -> None:
        # Taken over, not copied.
        self.__dict__ = values


class UnitOfWork(Generic[Model]):
    """The rows of one table that a transaction works on, new ones among them.

    `load` and `add` hand them out, the caller sets their attributes, `write` stores what is new or
    other than it was. Statements run in the transaction of `reading`, which is a writer's where
    anything is stored.
    """

    def __init__(self, reading: ReadTransaction, model: type[Model]) -> None:
        self._cursor = reading.cursor
        self._table = _table(model, reading.dialect)
        self._loaded: list[tuple[Model, dict[str, Any]]] = []
        self._new: list[Model] = []

    def load(self, attribute: str, values: Collection[Any]) -> list[Model]:
        """The stored rows whose attribute has one of these values; each row is loaded only once."""
        if not values:
            return []
        names = self._table.attributes.values()
        originals = [
            dict(zip(names, stored, strict=True))
            for stored in self._table.statements.select(self._cursor, attribute, values)
        ]
        found = cast(list[Model], [_Row(original.copy()) for original in originals])
        self._loaded += zip(found, originals, strict=True)
        return found

    def add(self, **values: Any) -> Model:
        """A new row; all columns without a default of the database must be given."""
        row = cast(Model, _Row(values))
        self._new.append(row)
        return row

    def remove(self, rows: Collection[Model], attribute: str) -> None:
        """Takes rows out of the table, found by a unique attribute, or out of those to be added."""
        if not rows:
            return
        gone = {id(row) for row in rows}
        new = {id(row) for row in self._new}
        self._new = [row for row in self._new if id(row) not in gone]
        self._loaded = [(row, original) for row, original in self._loaded if id(row) not in gone]
        stored = [getattr(row, attribute) for row in rows if id(row) not in new]
        self._table.statements.delete(self._cursor, attribute, stored)

    def write(self) -> None:
        """Stores what is new or changed; to be called once, at the end."""
        if self._new:
            self._table.statements.insert(self._cursor, [self._columns_of(vars(row)) for row in self._new])
        changes = [
            (self._key_of(original), self._columns_of(_difference(original, now)))
            for row, original in self._loaded
            if (now := vars(row)) != original
        ]
        if changes:
            self._table.statements.update(self._cursor, changes)

    def _columns_of(self, said: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: said[attribute] for name, attribute in self._table.attributes.items() if attribute in said
        }

    def _key_of(self, original: Mapping[str, Any]) -> dict[str, Any]:
        return {name: original[self._table.attributes[name]] for name in self._table.keys}


def _difference(original: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in now.items() if value != original[name]}


@dataclass(frozen=True, slots=True)
class _Table:
    """What is known of a table.

    `attributes` are those of its columns, in its order: of their names, but where SQLAlchemy reserves
    that. `keys` are the columns of the primary key.
    """

    statements: Statements
    attributes: Mapping[str, str]
    keys: Sequence[str]


@functools.lru_cache(maxsize=64)
def _table(model: type[SQLModel], dialect: Dialect) -> _Table:
    mapper = model.__mapper__  # type: ignore[attr-defined]
    table: Table = mapper.local_table
    attributes = {column.name: mapper.get_property_by_column(column).key for column in table.columns}
    return _Table(statements(table, dialect), attributes, [column.name for column in table.primary_key])
