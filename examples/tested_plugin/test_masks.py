"""Tests of `MaskCards`: those of the kit, and what only its author can know."""

import pytest
from hypothesis import given
from masks import CARD, DIGIT, MaskCards, MaskFirst

from dataflare import PluginRecord
from dataflare.testing import PluginTests, check_plugin, strategies

LINES = strategies.values([b"4111 1111 1111 1111", b"5500000000000004", b"card=", b"1234"])


class TestMaskCards(PluginTests):
    plugin = MaskCards
    records = LINES
    examples = 10


@given(LINES)
def test_twelve_digits_of_each_card_are_hidden(line):
    plugin = MaskCards()
    plugin.initialize({})
    result = plugin.process(PluginRecord(line))
    masked = result.data if result.is_success else line
    assert len(masked) == len(line)
    hidden = len(DIGIT.findall(line)) - len(DIGIT.findall(masked))
    assert hidden == 12 * len(CARD.findall(line))


def test_the_wrong_one_is_found():
    with pytest.raises(AssertionError, match="deterministic: at first it gives success"):
        check_plugin(MaskFirst, LINES, examples=10)
