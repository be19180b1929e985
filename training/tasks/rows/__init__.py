"""From rows to token ids: how rows are put, cut to length, cached, packed and padded."""
