"""Small texts in the store that several processes add to.

Each lies beside a version that counts its changes. Whoever adds something reads both, the version
first, and puts what comes of it only where the version is still that one; else it begins again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from schemas.errors import StreamError
from store.base import AsyncRowStore

#: Writers that add to one text at once: each of them wins within a few rounds.
MAX_ROUNDS: Final = 50
#: What to do where writers that belong to one group do not come to an end.
ONE_GROUP: Final = "check that one group reads this topic, once"


async def amend_text(
    store: AsyncRowStore,
    keys: tuple[str, str],
    change: Callable[[str | None], str | None],
    what: str,
    do: str,
) -> None:
    """Put what `change` makes of a text; None leaves it as it is.

    keys: of the text, and of its version. change: may be called again, with what another writer
    has put. what, do: of the StreamError where other writers always win, the place and the remedy.
    Raises StoreError, too, and what `change` raises.
    """
    key, version_key = keys
    for _ in range(MAX_ROUNDS):
        version = int(await store.get_text(version_key) or 0)
        text = change(await store.get_text(key))
        if text is None or await store.compare_and_set_text(key, version_key, version, text):
            return
    got = f"another writer {MAX_ROUNDS} times"
    raise StreamError(what, required="to be recorded", got=got, do=do)
