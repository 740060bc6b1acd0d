"""Turn the bodies of requests into arguments of the engine."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stars_engine.config import AlignParams, SamplingParams
from stars_engine.engine.engine import StarsEngine
from stars_engine.engine.streams import AsyncSegmentStream
from stars_engine.errors import ConfigError, PromptError
from stars_engine.integrations import ToolNames
from stars_engine.schedules import ConstantSchedule
from stars_engine.server.errors import ApiError, api_error_of
from stars_engine.server.fields import StarsOptions
from stars_engine.server.models import ServedModel
from stars_engine.server.requests import GenerationBody, SampledBody
from stars_engine.server.settings import ServerParams
from stars_engine.types import Prompt, StarsResult

_ALIGN = ("beta", "segment_len", "max_attempts", "on_exhausted")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request for text, ready for the engine.

    Attributes:
        model: The model that answers.
        engine: The handle of the model that reads the prompts as the endpoint means them.
        prompts: The prompts.
        sampling: The proposal.
        align: The acceptance settings.
        options: Our own options.
        names: The names of the tools.
        id: The id of the answer.
        created: When the request was read, in seconds since 1970.
        fields: Fields of the request, by the engine's name for them.
    """

    model: ServedModel
    engine: StarsEngine
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    align: AlignParams
    options: StarsOptions
    names: ToolNames
    id: str
    created: int
    fields: Mapping[str, str]

    async def results(self) -> list[StarsResult]:
        """Return all answers; cancelling the task cancels the requests."""
        with naming_fields(self.fields):
            found: list[StarsResult] = await self.engine.agenerate(
                self.prompts,
                sampling=self.sampling,
                align=self.align,
                reward_prompt=self.options.reward_prompt,
            )
        return [self.names.result(result) for result in found]

    async def stream(self) -> AsyncSegmentStream:
        """Return the stream of accepted segments, once all prompts have been read."""
        with naming_fields(self.fields):
            return await self.engine.astream(
                self.prompts,
                sampling=self.sampling,
                align=self.align,
                reward_prompt=self.options.reward_prompt,
            ).prepare()

    def index_of(self, prompt_index: int, sample_index: int) -> int:
        """Return the index of a choice."""
        return prompt_index * self.sampling.n + sample_index


@contextmanager
def naming_fields(fields: Mapping[str, str]) -> Iterator[None]:
    """Name the fields of the request in errors of the engine.

    Args:
        fields: Fields of the request, by the engine's name for them. `prompt` is the field of the
            prompt, and `function` how the path to a function follows that to its tool.

    Raises:
        ApiError: The engine refused the request.
    """
    try:
        yield
    except (ConfigError, PromptError) as error:
        refused = api_error_of(error)
        if refused.param is None:
            subject = refused.message.partition(" ")[0]  # such as reward_prompt
            default = fields.get("prompt") if isinstance(error, PromptError) else None
            refused.param = fields.get(subject, default)
        elif refused.param is not None:
            head, dot, rest = refused.param.partition(".")
            number, _, path = rest.partition(".")
            if head == "tools" and number.isdecimal():
                head, rest = f"tools[{number}]{fields.get('function', '')}", path
            refused.param = f"{fields.get(head, head)}{dot}{rest}"
        raise refused from error


def new_call(
    model: ServedModel,
    engine: StarsEngine,
    prompts: Sequence[Prompt],
    body: GenerationBody,
    params: ServerParams,
    *,
    prefix: str,
    fields: Mapping[str, str],
    names: ToolNames | None = None,
    **sampling: Any,
) -> EngineRequest:
    """Return the call that a request asks for.

    Args:
        model: The model.
        engine: One of its handles.
        prompts: The prompts.
        body: The request.
        params: What clients may change and see.
        prefix: How ids of this kind of answer begin.
        fields: Fields of this kind of request, by the engine's name for them.
        names: The names of the tools.
        **sampling: Further changes to the model's sampling; None changes nothing.

    Raises:
        ApiError: The model is not ready, or the request changes what clients may not.
            Or a value is not allowed.
    """
    align = model.ready_align
    options = body.stars
    changes = {**sampled(body), **{k: v for k, v in sampling.items() if v is not None}}
    _check_count(len(prompts) * changes["n"], engine)
    own = {name: f"stars.{name}" for name in type(options).model_fields}
    fields = {**own, **fields}
    if options.grammar is not None:
        fields["grammar"] = own["grammar"]
    with naming_fields(fields):
        settings = engine.sampling.replace(**changes), _align_of(options, align, params)
    return EngineRequest(
        model=model,
        engine=engine,
        prompts=prompts,
        sampling=settings[0],
        align=settings[1],
        options=options,
        names=names or ToolNames(),
        id=f"{prefix}{uuid.uuid4().hex}",
        created=int(time.time()),
        fields=fields,
    )


def _check_count(num_answers: int, engine: StarsEngine) -> None:
    """Refuse requests with more answers than the queue takes.

    Raises:
        ApiError: There are more.
    """
    limit = engine.config.engine.max_waiting
    if num_answers > limit:
        message = (
            f"The request asks for {num_answers} answers; allowed: {limit}. Hint: send several "
            "requests, or lower n"
        )
        raise ApiError(400, message, code="invalid_value", param="n")


def sampled(body: GenerationBody) -> dict[str, Any]:
    """Return the changes to the sampling that a request asks for."""
    options = body.stars
    changes: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "min_tokens": options.min_tokens,
        "grammar": options.grammar,
    }
    if isinstance(body, SampledBody):
        changes |= {
            "max_tokens": body.max_tokens,
            "frequency_penalty": body.frequency_penalty,
            "presence_penalty": body.presence_penalty,
            "n": body.n,
            "seed": body.seed,
            "stop": body.stop,
        }
        if body.logit_bias:
            changes["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    changes = {name: value for name, value in changes.items() if value is not None}
    if options.top_k == 0:
        changes["top_k"] = None
    return changes


def _align_of(options: StarsOptions, align: AlignParams, params: ServerParams) -> AlignParams:
    if options.rejected_text and not params.show_rejected:
        raise _not_allowed("stars.rejected_text", "--show-rejected")
    changes: dict[str, Any] = {
        name: value for name in _ALIGN if (value := getattr(options, name)) is not None
    }
    if options.threshold is not None:
        changes["schedule"] = ConstantSchedule(value=options.threshold)
    if changes and not params.client_align:
        name = "threshold" if "schedule" in changes else next(iter(changes))
        raise _not_allowed(f"stars.{name}", "--client-align")
    if align.on_exhausted == "fallback" and "on_exhausted" in changes:
        changes["fallback_text"] = None
    # A client may lower the limits of the server, but not raise them.
    for name in ("deadline_s", "max_drafted_tokens"):
        asked, own = getattr(options, name), getattr(align, name)
        if asked is not None:
            changes[name] = asked if own is None else min(asked, own)
    if params.show_rejected and options.rejected_text:
        changes["keep_rejected_text"] = True
    return align.replace(**changes) if changes else align


def _not_allowed(param: str, option: str) -> ApiError:
    message = f"{param!r} is not allowed on this server. Hint: leave it out, or start the server "
    return ApiError(400, f"{message}with {option}", code="not_allowed", param=param)
