"""Render a tokenizer's chat template, tracing which characters of the result it wrote itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any

from stars_engine.chat.traced_text import TracedText, joined, template_text, traced_function
from stars_engine.chat.turns import mapped
from stars_engine.threads.give_way import give_way

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_MAX_TEMPLATES = 32


def can_trace(tokenizer: Any) -> bool:
    """Return whether the tokenizer renders its template as transformers does, not with own code."""
    own = getattr(type(tokenizer), "apply_chat_template", None)
    return getattr(own, "__module__", None) == "transformers.tokenization_utils_base"


def render_traced(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> TracedText:
    """Return what `tokenizer.apply_chat_template(..., tokenize=False)` returns, traced.

    Args:
        tokenizer: A tokenizer that `can_trace` accepts.
        turns: Messages, as `turns_of` returns them. Strings that are not traced are content.
        tools: Tools, as `tools_of` returns them.
        add_generation_prompt: Whether to start an assistant message at the end.
        variables: Further variables of the template.

    Raises:
        Exception: The template rejects the messages, or is invalid.
    """
    template = _compiled(tokenizer.get_chat_template(None, tools))
    special = mapped(dict(tokenizer.special_tokens_map), template_text)
    text = template.render(
        messages=_Turns(map(_with_reasoning_names, turns)),
        tools=tools,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **{**special, **variables},
    )
    return text if isinstance(text, TracedText) else TracedText(text)


class _Turns(list[dict[str, Any]]):
    """Messages; a template that iterates over many of them lets other threads run."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for turn in super().__iter__():
            give_way()
            yield turn

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _Turns(found) if isinstance(key, slice) else found


def _with_reasoning_names(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its reasoning also under the name that gpt-oss templates read."""
    give_way()
    reasoning = turn.get("reasoning_content")
    return {**turn, "thinking": reasoning} if reasoning is not None else {**turn}


@lru_cache(maxsize=_MAX_TEMPLATES)
def _compiled(source: str) -> Template:
    """Compile a template whose strings are traced, with the functions of transformers."""
    from jinja2 import nodes  # noqa: PLC0415 - transformers requires it for templates
    from jinja2.compiler import CodeGenerator, Frame  # noqa: PLC0415
    from transformers.utils.chat_template_utils import (  # noqa: PLC0415
        _compile_jinja_template,
    )

    literals: list[TracedText] = []

    def listed(text: str) -> str:
        """Return code for a string of the template."""
        literals.append(template_text(text))
        return f"environment.literals[{len(literals) - 1}]"

    class TracingGenerator(CodeGenerator):
        """Generates code in which strings of the template are traced."""

        def _output_const_repr(self, group: Any) -> str:
            return listed("".join(group))

        def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802 - Jinja's
            if isinstance(node.value, str):
                self.write(listed(node.value))
            else:
                super().visit_Const(node, frame)

        def visit_TemplateData(  # noqa: N802 - Jinja's
            self, node: nodes.TemplateData, frame: Frame
        ) -> None:
            self.write(listed(node.data))

        def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's
            self.write("environment.concat(map(str, (")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write(")))")

    # Constant expressions are evaluated as they stand, not in advance without traces.
    environment: Any = _compile_jinja_template(source).environment.overlay(optimized=False)
    environment.code_generator_class = TracingGenerator
    environment.literals = literals
    environment.concat = joined
    environment.filters = _traced_filters(environment)
    environment.wrap_str_format = _traced_format(environment)
    compiled: Template = environment.from_string(source)
    return compiled


def _traced_filters(environment: Environment) -> dict[str, Callable[..., Any]]:
    """Return the filters; those that build strings trace them."""
    from jinja2 import pass_environment  # noqa: PLC0415 - transformers requires it for templates
    from jinja2.filters import make_attrgetter  # noqa: PLC0415

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        num_passed = int(hasattr(function, "jinja_pass_arg"))  # the environment, or its like
        return wraps(function)(traced_function(function, num_passed=num_passed))

    @pass_environment
    def join(
        environment: Environment,
        values: Iterable[Any],
        d: str = "",
        attribute: str | int | None = None,
    ) -> str:
        """Jinja's filter, which would lose traces."""
        if attribute is not None:
            values = map(make_attrgetter(environment, attribute), values)
        return TracedText.join(joined([d]), map(str, values))

    return {**{name: traced(each) for name, each in environment.filters.items()}, "join": join}


def _traced_format(environment: Any) -> Callable[[Any], Callable[..., str] | None]:
    """Return what replaces the methods `format` and `format_map` of strings."""
    sandboxed = environment.wrap_str_format

    def wrap(method: Any) -> Callable[..., str] | None:
        function: Callable[..., str] | None = sandboxed(method)
        if function is None or not isinstance(method.__self__, TracedText):
            return function

        def formatted(_: TracedText, *values: Any, **named: Any) -> str:
            return str.__str__(function(*values, **named))

        return partial(traced_function(formatted), method.__self__)

    return wrap
