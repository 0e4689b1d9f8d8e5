"""One file a format: a function `read(data: bytes) -> Parsed`."""
