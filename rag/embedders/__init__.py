"""Embedders, one file a backend; each satisfies `rag.protocols.Embedder`."""
