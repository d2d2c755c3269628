"""Searches: one loop, one strategy for each method."""

from bionas_fast.search.config import SearchConfig
from bionas_fast.search.loop import METHODS, Search, SearchResult, search
from bionas_fast.search.strategy import Strategy
