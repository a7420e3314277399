"""A plugin, and a wrong one, to be tested with `dataflare.testing`."""

import re

import dataflare

CARD = re.compile(rb"\d(?:[ -]?\d){15}")  # wherever sixteen digits stand together
DIGIT = re.compile(rb"\d")


class MaskCards(dataflare.DataFlarePlugin):
    """Hides card numbers, but for their last four digits."""

    thread_safe = True
    distributed = True

    def initialize(self, config):
        self.sign = config.get("sign", "*").encode()

    def process(self, record):
        value = bytes(record.value)
        masked = CARD.sub(self._mask, value)
        if masked == value:
            return dataflare.PluginResult.skip()
        return dataflare.PluginResult.success(masked)

    def _mask(self, card):
        return DIGIT.sub(self.sign, card[0][:-4]) + card[0][-4:]


class MaskFirst(MaskCards):
    """Wrong: hides the card numbers of one record, and no more until it is initialised again."""

    def initialize(self, config):
        super().initialize(config)
        self.done = False

    def process(self, record):
        if self.done:
            return dataflare.PluginResult.skip()
        result = super().process(record)
        self.done = result.is_success
        return result
