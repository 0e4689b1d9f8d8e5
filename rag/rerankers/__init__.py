"""Rerankers, one file a backend; each satisfies `rag.protocols.Reranker`."""
