"""Vector stores, one file each, behind one contract (`stores.contract`)."""
