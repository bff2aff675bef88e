"""Reads and writes rows with the driver's own cursor.

SQLAlchemy takes ten times what SQLite takes over a small query, and somebody waits for every change.
Its types still say how each value is read.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, Generic, Self, TypeVar, cast

from sqlalchemy import JSON, Connection, Dialect, Float
from sqlalchemy.orm import class_mapper
from sqlalchemy.types import TypeEngine
from sqlmodel import SQLModel

from manifest_cache.storage.models import UTCDateTime

Row = TypeVar("Row", bound=SQLModel)

# Parsed JSON up to this length is cached: tags, and most modules' meta.
_SHORT = 500


class ReadTransaction:
    """One state of a database. In its SQL `?` stands for each parameter, whatever the driver takes."""

    def __init__(self, cursor: Any, dialect: Dialect) -> None:
        self.cursor = cursor
        self.dialect = dialect

    @classmethod
    def of(cls, connection: Connection) -> Self:
        """The transaction of a connection of SQLAlchemy's."""
        return cls(connection.connection.cursor(), connection.dialect)

    def rows(self, sql: str, *parameters: object) -> Sequence[Any]:
        rows: Sequence[Any] = self.cursor.execute(_placed(sql, self.dialect), parameters).fetchall()
        return rows

    def value(self, sql: str, *parameters: object) -> Any:
        """The first value of the first row, None where there is none."""
        row = self.cursor.execute(_placed(sql, self.dialect), parameters).fetchone()
        return row[0] if row else None

    def objects(self, model: type[Row], rest: str, *parameters: object) -> Sequence[Row]:
        """The rows of a table; `rest` is what follows its name in a SELECT."""
        return [row.object() for row in self.stored(model, rest, *parameters)]

    def stored(self, model: type[Row], rest: str, *parameters: object) -> Sequence[Stored[Row]]:
        """The same, for who may not need them as objects."""
        table = _table(model, self.dialect)
        return [Stored(table, row) for row in self.rows(f"{table.select} {rest}", *parameters)]


class WriteTransaction(ReadTransaction):
    """The transaction of a writer, for statements beside those that read."""


class Stored(Generic[Row]):
    """A row of a table as the driver gives it."""

    __slots__ = ("_row", "_table")

    def __init__(self, table: _Table[Row], row: Sequence[Any]) -> None:
        self._table = table
        self._row = row

    def object(self) -> Row:
        return self._table.object(self._row)

    def value(self, attribute: str) -> Any:
        """As the driver gives it."""
        return self._row[self._table.places[attribute]]

    def fingerprint(self) -> Hashable:
        """Differs as soon as anything of the row differs; valid within this process alone."""
        # By far the quickest, and with the first column, the key, only versions of one row could be alike.
        try:
            return self._row[0], hash(self._row)
        except TypeError:
            # Some drivers decode JSON themselves.
            return hashlib.blake2b(repr(self._row).encode(), digest_size=16).digest()


def one_of(values: Collection[object]) -> str:
    """What follows a column that is to have one of these values, which are the parameters."""
    # A list without members is no SQL; NULL equals nothing.
    return f"IN ({', '.join('?' * len(values)) or 'NULL'})"


class _Table(Generic[Row]):
    """How the rows of one table are read from one kind of database."""

    def __init__(self, model: type[Row], dialect: Dialect) -> None:
        quote = dialect.identifier_preparer.quote
        mapper = class_mapper(model)
        table = SQLModel.metadata.tables[str(model.__tablename__)]
        columns = tuple(table.columns)
        names = ", ".join(f"{quote(table.name)}.{quote(column.name)}" for column in columns)
        self.select = f"SELECT {names} FROM {quote(table.name)}"
        self._attributes = [mapper.get_property_by_column(column).key for column in columns]
        self.places = {attribute: number for number, attribute in enumerate(self._attributes)}
        readers = [reader(column.type, dialect) for column in columns]
        self._readers: list[tuple[int, str, Callable[[Any], Any]]] = [
            (number, attribute, read)
            for number, (attribute, read) in enumerate(zip(self._attributes, readers, strict=True))
            if read is not None
        ]
        self._kind = _unmapped(model)

    def object(self, row: Sequence[Any]) -> Row:
        values = dict(zip(self._attributes, row, strict=True))
        for number, attribute, read in self._readers:
            values[attribute] = read(row[number])
        found = self._kind()
        found.__dict__ = values
        return cast(Row, found)


class _Unmapped:
    """A row as plain values; equal to another one that has the same."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
        )


def _unmapped(model: type[SQLModel]) -> type[Any]:
    """A class whose objects have a row's attributes and properties, without what notes changes of them."""
    properties = {name: member for name, member in vars(model).items() if isinstance(member, property)}
    return type(model.__name__, (_Unmapped,), {**properties, "model_fields": model.model_fields})


def reader(kind: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """What a value of the driver goes through, None if it stays as it is.

    What it gives may be given to others too: it is not to be altered.
    """
    # Drivers give floats as floats; the dialect of psycopg would know the type that the server gives.
    if isinstance(kind, Float):
        return None
    read = kind.dialect_impl(dialect).result_processor(dialect, None)
    if read is None:
        return None
    if isinstance(kind, UTCDateTime):
        # Many rows have the moment of one transaction in several columns.
        return functools.lru_cache(maxsize=256)(read)
    return _remembering_short_ones(read) if isinstance(kind, JSON) else read


def _remembering_short_ones(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """For JSON that comes as text: many rows say the same, and after the next change they are read again."""
    remembered = functools.lru_cache(maxsize=1024)(read)

    def process(said: Any) -> Any:
        return remembered(said) if isinstance(said, str) and len(said) <= _SHORT else read(said)

    return process


@functools.lru_cache(maxsize=64)
def _table(model: type[Row], dialect: Dialect) -> _Table[Row]:
    return _Table(model, dialect)


@functools.lru_cache(maxsize=1024)
def _placed(sql: str, dialect: Dialect) -> str:
    return sql if dialect.paramstyle == "qmark" else sql.replace("?", "%s")
