"""One description of a setting: the option, its help and the guide follow from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import bionas_fast as bf
from bionas_fast import presets
from bionas_fast.cli.settings_table import settings_page
from bionas_fast.runs.kinds import get_kind, kind_names

DOCS = Path(__file__).parents[2] / "docs"


def test_the_guide_to_the_settings_is_what_the_code_says():
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_page()


@pytest.mark.parametrize("kind", kind_names())
def test_every_setting_is_described(kind):
    for name, field in get_kind(kind).settings.model_fields.items():
        assert (field.description or "").endswith("."), name


def test_presets_are_of_kinds_that_there_are():
    for name in presets.names():
        assert any(name in presets.names(kind) for kind in kind_names())
    for kind in kind_names():
        for name in presets.names(kind):
            get_kind(kind).settings(**presets.get(name, kind).settings)


def test_off_in_yaml_is_the_word():
    assert yaml.safe_load("off") is False
    assert bf.TrainConfig(amp=False).amp == "off"
    with pytest.raises(bf.InputError, match="amp: expected a number or text, got True"):
        bf.TrainConfig(amp=True)
