"""Settings in layers: defaults < rag.toml < RAG_* environment < command line.

`RAG_EMBEDDER_MODEL` is `model` in `[embedder]`. `load` remembers where each value comes from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from rag.errors import ConfigError

CONFIG_FILE = "rag.toml"
_SECRET = re.compile(r"(?:key|token|secret|password)$")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class EmbedderSettings(_Section):
    """`[embedder]`: what turns text into vectors."""

    kind: str = "sentence-transformers"
    model: str = "all-MiniLM-L6-v2"
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    backend: Literal["auto", "torch", "openvino"] = "auto"
    batch_size: int = Field(default=8, ge=1)
    query_prefix: str | None = None
    document_prefix: str | None = None
    url: str = ""
    api_key: SecretStr = SecretStr("")
    tokenizer: str = ""
    max_tokens: int = Field(default=0, ge=0)
    timeout_s: float = Field(default=60.0, gt=0)
    options: dict[str, Any] = {}


class GeneratorSettings(_Section):
    """`[generator]`: what writes answers. With no url set, the best sentences are quoted.

    What is None is left to the model. `context_tokens` 0 is the window that the model tells.
    """

    kind: str = "auto"
    model: str = ""
    url: str = ""
    api_key: SecretStr = SecretStr("")
    stream: bool = True
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    max_tokens: int = Field(default=512, ge=1)
    stop: list[str] = []
    seed: int | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0)
    context_tokens: int = Field(default=0, ge=0)
    tokenizer: str = ""
    first_token_s: float = Field(default=60.0, gt=0)
    timeout_s: float = Field(default=300.0, gt=0)
    retries: int = Field(default=2, ge=0, le=10)
    breaker_failures: int = Field(default=5, ge=1)
    breaker_reset_s: float = Field(default=30.0, gt=0)
    concurrency: int = Field(default=16, ge=1)
    options: dict[str, Any] = {}
    engine: dict[str, Any] = {}


class IngestSettings(_Section):
    """`[ingest]`: how files become chunks, and what one file may cost."""

    chunk_tokens: int = Field(default=220, ge=16)
    overlap_tokens: int = Field(default=0, ge=0)
    max_file_mb: int = Field(default=200, ge=1)
    parse_seconds: float = Field(default=120.0, gt=0)
    parse_memory_mb: int = Field(default=4096, ge=256)
    workers: int = Field(default=2, ge=1)


class SearchSettings(_Section):
    """`[search]`: which legs, how different the hits should be, how many neighbours go along."""

    mode: Literal["hybrid", "dense", "keyword"] = "hybrid"
    diversity: float = Field(default=0.0, ge=0, le=1)
    expand: int = Field(default=0, ge=0, le=10)


class RerankSettings(_Section):
    """`[rerank]`: what reads the best `candidates` again, together with the question."""

    kind: str = "none"
    model: str = ""
    url: str = ""
    api: Literal["tei", "jina", "cohere"] = "jina"
    api_key: SecretStr = SecretStr("")
    device: str = "auto"
    candidates: int = Field(default=50, ge=1, le=1000)
    timeout_s: float = Field(default=30.0, gt=0)
    options: dict[str, Any] = {}


class JudgeSettings(_Section):
    """`[judge]`: the model that judges answers in `rag eval --answers`; none with no url set."""

    model: str = ""
    url: str = ""
    api_key: SecretStr = SecretStr("")
    concurrency: int = Field(default=8, ge=1)
    options: dict[str, Any] = {}


class AnswerSettings(_Section):
    """`[answer]`: how many passages, and from how little evidence to abstain (0 to 1)."""

    top_k: int = Field(default=5, ge=1, le=100)
    rewrite: bool = True
    templates: Path | None = None
    sentences: int = Field(default=3, ge=1)
    min_evidence: float = Field(default=0.5, ge=0, le=1)


class ServiceSettings(_Section):
    """`[service]`: where `rag serve` listens, whom it lets in, and how much it takes at a time.

    Limits of rate are written like "600/minute", several with ";", none is ""; they are kept in
    `cache.url` if that is set, so that several processes count together. `datasets` is the folder
    of what evaluations can ask; `data_dir`/datasets by default.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    without_keys: bool = False
    trusted_proxies: list[str] = []
    cors_origins: list[str] = []
    rate_limit: str = "600/minute"
    address_limit: str = "1200/minute"
    concurrency: int = Field(default=64, ge=1)
    queue: int = Field(default=128, ge=0)
    deadline_s: float = Field(default=120.0, gt=0)
    shutdown_s: float = Field(default=30.0, gt=0)
    heartbeat_s: float = Field(default=15.0, gt=0)
    store_failures: int = Field(default=5, ge=1)
    store_reset_s: float = Field(default=10.0, gt=0)
    max_body_kb: int = Field(default=1024, ge=16)
    max_upload_mb: int = Field(default=100, ge=1)
    max_jobs: int = Field(default=1000, ge=1)
    datasets: Path = Path()
    ready_needs: list[Literal["store", "embedder", "generator", "cache"]] = ["store", "embedder"]
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_texts: bool = False
    price_prompt: float = Field(default=0.0, ge=0)
    price_completion: float = Field(default=0.0, ge=0)


class CacheSettings(_Section):
    """`[cache]`: where answers and vectors of questions are kept: at `url` in Redis, or in memory.

    `size_mb` bounds the memory of a process; `timeout_s` how long Redis may take.
    """

    enabled: bool = True
    url: SecretStr = SecretStr("")
    ttl_s: int = Field(default=3600, ge=1)
    size_mb: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=0.25, gt=0)


class OidcSettings(_Section):
    """`[oidc]`: bearer tokens (JWT) that an identity provider signed; none with no jwks_url set."""

    jwks_url: str = ""
    issuer: str = ""
    audience: str = ""
    algorithms: list[str] = ["RS256", "ES256"]
    scopes_claim: str = "scope"
    collections_claim: str = ""
    tenant_claim: str = ""
    tenant_field: str = "tenant"
    timeout_s: float = Field(default=5.0, gt=0)


class UiSettings(_Section):
    """`[ui]`: where `rag ui` listens, and the service that its page asks.

    With no `api_url` set, the page has a service of its own, over this machine's data. With one,
    and no `api_key`, whoever opens the page is asked for a key if the service wants any.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8501, ge=0, le=65535)
    api_url: str = ""
    api_key: SecretStr = SecretStr("")
    without_keys: bool = False
    browser: bool = True


class Settings(BaseSettings):
    """Every setting. Paths are absolute once loaded."""

    model_config = SettingsConfigDict(
        env_prefix="RAG_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
    )

    data_dir: Path = Field(default_factory=lambda: user_data_path("rag", appauthor=False))
    models_dir: Path = Path()
    store: str = "faiss"
    collection: str = "default"
    metric: Literal["cosine", "ip", "l2"] = "cosine"
    embedder: EmbedderSettings = EmbedderSettings()
    generator: GeneratorSettings = GeneratorSettings()
    ingest: IngestSettings = IngestSettings()
    search: SearchSettings = SearchSettings()
    rerank: RerankSettings = RerankSettings()
    answer: AnswerSettings = AnswerSettings()
    judge: JudgeSettings = JudgeSettings()
    service: ServiceSettings = ServiceSettings()
    cache: CacheSettings = CacheSettings()
    oidc: OidcSettings = OidcSettings()
    ui: UiSettings = UiSettings()
    stores: dict[str, dict[str, Any]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` passes in: it has merged the layers, and knows their origins."""
        return (init_settings,)


class Loaded:
    """The settings, and for each dotted name where its value comes from."""

    def __init__(self, settings: Settings, origins: Mapping[str, str]) -> None:
        self.settings = settings
        self._origins = origins

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """(name, value, origin) of every setting; secrets come masked."""
        for name, value in _flatten(self.settings.model_dump()):
            hidden = isinstance(value, SecretStr) or _SECRET.search(name)
            shown = ("********" if _plain(value) else "") if hidden else value
            yield name, shown, self._origins.get(name, "default")

    def unknown(self, environment: Mapping[str, str]) -> list[str]:
        """RAG_* variables that name no setting: misspelt, or meant for another program."""
        names = [n for n, _ in _flatten(self.settings.model_dump())]
        tables = [n.rpartition(".")[0] for n in names if "." in n]  # given whole, as JSON
        known = {_variable(n) for n in (*names, *tables)} | {"RAG_CONFIG", "RAG_DEBUG"}
        given = [name for name in environment if name.upper().startswith("RAG_")]
        return sorted(n for n in given if n.upper() not in known)


def load(command_line: Mapping[str, Any], config: Path | None = None) -> Loaded:
    """Merge the layers. `command_line` has dotted names; `config` is by default ./rag.toml.

    Raises ConfigError, naming the setting and where its value came from.
    """
    if config is not None and not config.is_file():
        raise ConfigError(f"there is no settings file {config}", "check --config or RAG_CONFIG")
    path = config or Path(CONFIG_FILE)
    layers: dict[str, Callable[[], dict[str, Any]]] = {
        str(path): lambda: TomlConfigSettingsSource(Settings, toml_file=path)(),
        "environment": lambda: _stores_by_name(EnvSettingsSource(Settings)()),
        "command line": lambda: InitSettingsSource(Settings, _nest(command_line))(),
    }
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, read in layers.items():
        try:
            values = read()
        except (ValueError, OSError, RecursionError) as error:
            where = "a RAG_* variable" if origin == "environment" else origin
            raise ConfigError(f"{where} cannot be read ({error})", "mend it") from error
        for name, _ in _flatten(values):
            origins[name] = _variable(name) if origin == "environment" else origin
        _merge(merged, values)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        given = [origin for key, origin in origins.items() if f"{key}.".startswith(f"{name}.")]
        wrong = "no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(
            f"the setting {name!r} from {given[0] if given else path} is wrong ({wrong})",
            "README.md lists the settings, and `rag config show` elsewhere their values",
        ) from error
    return Loaded(settings.model_copy(update=_placed(settings)), origins)


def _placed(settings: Settings) -> dict[str, Any]:
    """The folders of the settings as absolute paths."""
    try:
        data_dir = settings.data_dir.expanduser().absolute()
        models_dir = settings.models_dir.expanduser()
        datasets = settings.service.datasets.expanduser()
        templates = settings.answer.templates and settings.answer.templates.expanduser()
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"a folder of the settings is not there ({error})", "mend it") from error
    kept = data_dir / "models" if models_dir == Path() else models_dir.absolute()
    judged = data_dir / "datasets" if datasets == Path() else datasets.absolute()
    service = settings.service.model_copy(update={"datasets": judged})
    answer = settings.answer
    if templates is not None:
        answer = answer.model_copy(update={"templates": templates.absolute()})
    return {"data_dir": data_dir, "models_dir": kept, "answer": answer, "service": service}


def _stores_by_name(values: dict[str, Any]) -> dict[str, Any]:
    """RAG_STORES_CHROMA_HOST=x names one setting, RAG_STORES_CHROMA={"host": "x"} many."""
    stores = values.get("stores")
    if isinstance(stores, dict):
        for name, value in list(stores.items()):
            kind, _, option = name.partition("_")
            if option and not isinstance(value, dict):
                del stores[name]
                _merge(stores, {kind: {option: value}})
    return values


def _variable(name: str) -> str:
    return "RAG_" + name.upper().replace(".", "_")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _nest(dotted: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in dotted.items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"there is no setting {name!r}", "see: rag config show")
        inner[last] = value
    return nested


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
