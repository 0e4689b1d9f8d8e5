"""Ingestion: file -> Document -> Chunk -> vector -> store (read, split, pipeline)."""
