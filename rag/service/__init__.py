"""The HTTP service: POST /query for internal applications. `rag.service.api` puts it together."""
