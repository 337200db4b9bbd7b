"""Lists in pages, as OpenAI pages, with bounded work: names are listed, and only what is shown is read.

Names sort the newest first (`keys.newest_first`). Where the store lists in order, a page of the newest costs one
request; elsewhere, and for the oldest first, the folder's names are gone through, and no more than a page of them kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar, cast

from cotenant.calls.desk import Json, Page
from cotenant.errors import RequestRefused
from cotenant.jobs.store.objects import Entry, Objects

#: Small objects read at once.
AT_ONCE = 16

T = TypeVar("T")
S = TypeVar("S")


def check_page(page: Page, most: int) -> None:
    """Raises RequestRefused for a page that there can't be; `most` is the highest limit."""
    if not 1 <= page.limit <= most:
        raise RequestRefused(
            f"limit needs a number from 1 to {most}, got {page.limit}", param="limit", code="invalid_value"
        )
    if page.order not in ("asc", "desc"):
        raise RequestRefused(f"order needs asc or desc, got {page.order[:40]!r}", param="order", code="invalid_value")


async def page_of_keys(
    objects: Objects, prefix: str, page: Page, *, after: str = "", wanted: Callable[[str], bool] = lambda key: True
) -> tuple[list[str], bool]:
    """The keys under `prefix` that make up a page, in its order, and whether there are more.

    Args:
        after: key of the last object of the page before.
        wanted: which keys count.
    """
    if page.order == "desc":
        found = await _first(objects, prefix, page.limit + 1, after, wanted)
    else:
        found = await _last(objects, prefix, page.limit + 1, after, wanted)
    return found[: page.limit], len(found) > page.limit


async def _first(objects: Objects, prefix: str, count: int, after: str, wanted: Callable[[str], bool]) -> list[str]:
    found: list[str] = []
    async with aclosing(cast("AsyncGenerator[Entry, None]", objects.list(prefix, after=after))) as listing:
        async for entry in listing:
            if not wanted(entry.key):
                continue
            found.append(entry.key)
            if objects.ordered and len(found) == count:
                return found
            if len(found) > 8 * count + 1000:
                found = sorted(found)[:count]
    return sorted(found)[:count]


async def _last(objects: Objects, prefix: str, count: int, before: str, wanted: Callable[[str], bool]) -> list[str]:
    found: list[str] = []
    async for entry in objects.list(prefix):
        if not wanted(entry.key) or (before and entry.key >= before):
            continue
        found.append(entry.key)
        if len(found) > 8 * count + 1000:
            found = sorted(found, reverse=True)[:count]
    return sorted(found, reverse=True)[:count]


async def gathered(each: Callable[[S], Awaitable[T]], items: Iterable[S], *, at_once: int = AT_ONCE) -> list[T]:
    """`each` of the items, in their order, so many at once."""
    waiting = list(items)
    done: list[T] = []
    for start in range(0, len(waiting), at_once):
        done += await asyncio.gather(*(each(item) for item in waiting[start : start + at_once]))
    return done


def listed(data: list[Json], has_more: bool) -> Json:
    """OpenAI's list object."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
