"""rag: questions answered from your own documents, with the source of each sentence."""

__version__ = "0.1.0"
