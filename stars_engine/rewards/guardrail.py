"""A guardrail of the library any-guardrail as reward model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from any_guardrail import AnyGuardrail, EvaluateArgumentError, GuardrailName
from any_guardrail.evaluate import build_validate_call

from stars_engine.config import FunctionReward, GuardrailReward
from stars_engine.errors import ModelLoadError, describe_error
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.types import RewardInput

_FAILING = ("floor", "on_failure", "max_retries", "max_concurrency", "timeout_s")


class GuardrailRewardModel(FunctionRewardModel):
    """Calls the guardrail's `validate` for each completion; an `OffloadedReward`."""

    def __init__(self, config: GuardrailReward) -> None:
        self._guardrail = config
        function = _validation(config)
        fields = {name: getattr(config, name) for name in _FAILING}
        super().__init__(FunctionReward(function=function, by="input", **fields))
        self.name = f"guardrail {config.guardrail}"

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        return {"guardrail": self._guardrail.guardrail, "reward": self._guardrail.output}


def check_guardrail(config: GuardrailReward) -> None:
    """Check that the library has this guardrail.

    Raises:
        ModelLoadError: It has none of this name.
    """
    _name_of(config)


def _name_of(config: GuardrailReward) -> GuardrailName:
    try:
        return GuardrailName(config.guardrail)
    except ValueError:
        raise ModelLoadError(
            f"guardrail={config.guardrail!r} is unknown; any-guardrail has "
            f"{', '.join(sorted(name.value for name in GuardrailName))}. Hint: use one of these"
        ) from None


def _validation(config: GuardrailReward) -> Callable[[RewardInput], float]:
    """Make the guardrail; return a function that calls it and returns the reward.

    Raises:
        ModelLoadError: The guardrail cannot be made, or it cannot judge what the config says.
    """
    name = _name_of(config)
    try:
        guardrail: Any = AnyGuardrail.create(name, **config.guardrail_kwargs)
    except Exception as error:  # third-party code
        raise ModelLoadError(
            f"guardrail={config.guardrail!r} cannot be made: {describe_error(error)}. Hint: check "
            "guardrail_kwargs, and that the extra of any-guardrail is installed that it needs, as "
            "in pip install 'any-guardrail[huggingface]'"
        ) from error
    reads_prompt = _reads_prompt(config, name, guardrail)

    def judge(item: RewardInput) -> float:
        keywords = _filled(config.validate_kwargs, item.prompt.text)
        texts = (item.prompt.text, item.text) if reads_prompt else (item.text, None)
        arguments, named = build_validate_call(name, guardrail, *texts, keywords)
        return _reward(config, guardrail.validate(*arguments, **named))

    return judge


def _reads_prompt(config: GuardrailReward, name: GuardrailName, guardrail: Any) -> bool:
    """Return whether the guardrail reads the prompt too; try its arguments, without a call."""
    wanted = [True, False] if config.judges == "auto" else [config.judges == "conversation"]
    said = ""
    for reads_prompt in wanted:
        texts = ("prompt", "answer") if reads_prompt else ("answer", None)
        try:
            build_validate_call(name, guardrail, *texts, _filled(config.validate_kwargs, ""))
        except EvaluateArgumentError as error:
            said = str(error)
        else:
            return reads_prompt
    raise ModelLoadError(
        f"guardrail={config.guardrail!r} cannot be called with judges={config.judges!r}: {said} "
        "Hint: set `judges`, or give what is missing in validate_kwargs"
    )


def _filled(keywords: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    return {name: prompt if value == "{prompt}" else value for name, value in keywords.items()}


def _reward(config: GuardrailReward, found: Any) -> float:
    if config.output == "valid":
        return float(found.valid)
    if found.score is None:
        raise ValueError(f"{config.guardrail} returned no risk score. Hint: use output='valid'")
    return 1.0 - float(found.score)
