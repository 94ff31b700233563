"""Which values should not be there: scores of entries by their own cells, by other cells and as gross errors."""
