"""`stars serve`: models behind OpenAI's API."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stars_engine.cli.interrupts import end_soon, signals_left_alone, status_of
from stars_engine.cli.messages import LogMessages, messages
from stars_engine.cli.options import NoImportsOption
from stars_engine.cli.settings import given
from stars_engine.cli.threads import use_one_thread
from stars_engine.config import StarsConfig
from stars_engine.errors import needs_extra
from stars_engine.files.config_files import refuse_imports

KEYS_VARIABLE = "STARS_API_KEYS"
_EMBEDDED_NAME = "embedded"


def serve_command(
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            metavar="[NAME=]FILE",
            help="A YAML or JSON file, under the name that clients use; repeatable. Default name: "
            "that of the file. Default: the embedded pair, as 'embedded'.",
        ),
    ] = None,
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 chooses a free one. Default: 8000.")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="A file with one key a line, or 'sha256:' and its digest. Without it, the keys "
            f"are those of the variable {KEYS_VARIABLE}, and without that none is needed.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose pages may call the server; repeatable."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name of this server that requests may address; repeatable, '*' for all. "
            "Default: localhost, if no key is needed and only this machine can connect; else all."
        ),
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(help="Requests in progress at most. Default: 1024.")
    ] = None,
    max_requests_per_key: Annotated[
        int | None, typer.Option(help="Requests of one API key in progress. Default: 256.")
    ] = None,
    tokens_per_minute_per_key: Annotated[
        int | None,
        typer.Option(help="Tokens of one API key, rejected drafts included. Default: no limit."),
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(help="Size of a request's body at most. Default: 4194304.")
    ] = None,
    drain_s: Annotated[
        float | None,
        typer.Option(help="Seconds for requests in progress after SIGTERM. Default: 30."),
    ] = None,
    client_align: Annotated[
        bool, typer.Option("--client-align", help="Let clients change the acceptance test.")
    ] = False,
    show_rejected: Annotated[
        bool, typer.Option("--show-rejected", help="Let clients read rejected drafts.")
    ] = False,
    no_page: Annotated[bool, typer.Option("--no-page", help="Serve no page at /.")] = False,
    tracing: Annotated[
        bool, typer.Option("--tracing", help="Emit OpenTelemetry spans; needs [otel].")
    ] = False,
    no_imports: NoImportsOption = False,
) -> None:
    """Serve models behind OpenAI's API. Clients get accepted segments only."""
    messages.say("starting the server")
    with needs_extra("serve"):
        from stars_engine.server.run import StarsServer
    from stars_engine.server.settings import ServerParams

    params = ServerParams(
        **given(
            host=host,
            port=port,
            max_requests=max_requests,
            max_requests_per_key=max_requests_per_key,
            tokens_per_minute_per_key=tokens_per_minute_per_key,
            max_body_bytes=max_body_bytes,
            drain_s=drain_s,
            cors_origins=cors_origin,
            allowed_hosts=allowed_host,
        ),
        client_align=client_align,
        show_rejected=show_rejected,
        page=not no_page,
        tracing=tracing,
    )
    configs = read_configs(config or [], allow_imports=not no_imports)
    keys = _read_keys(api_keys)
    if not len(keys) and not params.is_local:
        messages.say(
            f"warning: anyone who reaches {params.host} may use the models. Hint: pass --api-keys "
            "FILE"
        )
    if all(settings.uses_embedded_pair for settings in configs.values()):
        use_one_thread()
    if tracing:
        from stars_engine.server.telemetry import export_spans

        export_spans()
    _set_up_logging()
    names = ", ".join(configs)
    server = StarsServer(
        configs,
        params,
        keys,
        on_started=lambda url: messages.say(f"serving {names} at {url}"),
        on_cut_off=end_soon,
    )
    with signals_left_alone():
        server.run()
    if server.load_failed or not server.started:
        sys.exit(2)
    if server.cut_off_by is not None:
        sys.exit(status_of(server.cut_off_by))


def read_configs(options: list[str], *, allow_imports: bool) -> dict[str, StarsConfig]:
    """Return the configuration of each model by its name.

    Raises:
        ConfigError: A file is invalid, or names code although imports are refused.
    """
    if not options:
        return {_EMBEDDED_NAME: StarsConfig()}
    configs: dict[str, StarsConfig] = {}
    for option in options:
        name, separator, file = option.partition("=")
        if not separator or Path(option).is_file():  # `=` may be in a path
            name, file = Path(option).stem, option
        if not name or not file:
            raise typer.BadParameter(
                f"{option!r} lacks a {'file' if name else 'name'}. Hint: use --config NAME=FILE, "
                "or --config FILE"
            )
        if name in configs:
            raise typer.BadParameter(
                f"two models are called {name!r}; names must be unique. Hint: use --config "
                f"NAME={file}"
            )
        configs[name] = StarsConfig.from_file(Path(file), allow_imports=allow_imports)
        if not allow_imports:
            refuse_imports(file, configs[name])
    return configs


def _read_keys(path: Path | None) -> Any:
    from stars_engine.server.settings import ApiKeys

    if path is not None:
        keys = ApiKeys.from_file(path)
        if os.name == "posix" and path.stat().st_mode & stat.S_IROTH:
            messages.say(f"warning: every user may read {path}. Hint: chmod o-r {path}")
        return keys
    text = os.environ.get(KEYS_VARIABLE)
    # An empty variable is an error: a server that was meant to need keys must not be open.
    return ApiKeys() if text is None else ApiKeys.read(text, KEYS_VARIABLE)


def _set_up_logging() -> None:
    """Log requests as JSON lines on standard output, and everything else on standard error."""
    package = logging.getLogger("stars_engine")
    package.addHandler(LogMessages())
    package.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addHandler(LogMessages(logging.WARNING))
    access = logging.getLogger("stars_engine.server.access")
    access.addHandler(logging.StreamHandler(sys.stdout))
    access.propagate = False
