"""Architecture search: one trainer, one class for each method."""

from typing import TYPE_CHECKING

from bionas_fast.imports import on_first_use

if TYPE_CHECKING:
    from bionas_fast.searching.config import SearchConfig
    from bionas_fast.searching.loop import Search, search
    from bionas_fast.searching.method import SearchMethod
    from bionas_fast.searching.names import get_method, method_names, register_method
    from bionas_fast.searching.repeats import SearchTable, repeat_search
    from bionas_fast.searching.result import SearchResult
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "config": "SearchConfig",
            "loop": "Search search",
            "method": "SearchMethod",
            "names": "get_method method_names register_method",
            "repeats": "SearchTable repeat_search",
            "result": "SearchResult",
        },
    )

__all__ = [
    "Search",
    "SearchConfig",
    "SearchMethod",
    "SearchResult",
    "SearchTable",
    "get_method",
    "method_names",
    "register_method",
    "repeat_search",
    "search",
]
