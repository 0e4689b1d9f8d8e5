"""Generators, one file a backend; each satisfies `rag.protocols.Generator`."""
