"""How results, schedules and engines look: short reprs, HTML for notebooks and pages, help."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from stars_engine import AlignParams, CalibratedSchedule, SamplingParams, StarsEngine, StarsResult
from stars_engine.display.charts import reward_chart
from stars_engine.display.results import prompt_of, rejection_of, results_page
from stars_engine.trace import transcript


class Parsed(HTMLParser):
    """Text and tags of a page; every tag must be closed."""

    VOID = ("meta",)

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.struck = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        self.struck += data if "del" in self.open else ""


@pytest.fixture(scope="module")
def result(engine: StarsEngine) -> StarsResult:
    align = engine.config.align.replace(keep_rejected_text=True)
    [found] = engine.generate("The plot", align=align, max_tokens=16, seed=3)
    return found


def test_a_result_is_short_and_its_page_is_whole(result: StarsResult) -> None:
    assert len(repr(result)) < 300 + len(result.text)
    assert repr(result.segments[0]).startswith("Segment(text=")
    page = Parsed(result._repr_html_())
    for segment in result.segments:
        assert segment.text in page.text
        for attempt in segment.attempts:
            assert (attempt.text in page.struck) == (attempt.verdict == "rejected")


def test_the_page_escapes_what_models_write(result: StarsResult) -> None:
    nasty = "<script>alert('x')</script> & \"quoted\""
    segment = result.segments[0].replace(text=nasty)
    changed = result.replace(segments=(segment,), prompt=nasty, id="<b>")
    page = results_page([changed, result], "<trace>")
    parsed = Parsed(page)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert parsed.text.count(nasty) >= 2
    assert "width=device-width" in page
    assert "prefers-color-scheme: dark" in page
    assert "://" not in page  # self-contained


def test_an_answer_begins_on_its_own_line_unless_it_continues_the_prompt(
    result: StarsResult,
) -> None:
    for text, shown in ((" was good.", "The plot"), ("It was good.", "The plot\n")):
        assert prompt_of(result.replace(text=text, prompt="The plot")) == shown
    assert prompt_of(result.replace(prompt=None)) == ""


def test_a_forced_segment_is_red(engine: StarsEngine) -> None:
    align = AlignParams(schedule={"kind": "constant", "value": 99}, max_attempts=1, segment_len=4)
    [forced] = engine.generate("The plot", align=align, max_tokens=4, seed=1)
    assert "218 54 51" in forced._repr_html_()


def test_a_chart_shows_each_reward_and_the_threshold(engine: StarsEngine) -> None:
    constant = {"kind": "constant", "value": 99}
    align = AlignParams(schedule=constant, max_attempts=3, segment_len=4, num_candidates=4)
    for on_exhausted, num_kept, columns in (("best", 2, 2), ("stop", 0, 1)):
        [found] = engine.generate(
            "The plot", align=align.replace(on_exhausted=on_exhausted), max_tokens=8, seed=1
        )
        shapes = Parsed(found._repr_html_()).tags
        circles = [attributes for tag, attributes in shapes if tag == "circle"]
        kept = [each for each in circles if each["fill"] != "none"]
        assert (len(circles), len(kept)) == (3 * columns, num_kept)
        [line] = [attributes["d"] for tag, attributes in shapes if tag == "path"]
        assert line.count("h") == columns
    [plain] = engine.vanilla("The plot", max_tokens=4, seed=1)
    assert reward_chart(plain.replace(segments=())) == ""


def test_a_chart_leaves_out_what_is_not_finite(result: StarsResult) -> None:
    segment = result.segments[0]
    infinite = segment.attempts[0].replace(reward=-math.inf)
    changed = segment.replace(attempts=(infinite,), threshold=-math.inf)
    assert reward_chart(result.replace(segments=(changed,))) == ""


def test_best_of_n_has_no_threshold_and_no_color(engine: StarsEngine) -> None:
    [best] = engine.best_of_n("The plot", 3, max_tokens=6, seed=1)
    shown = Parsed(best._repr_html_())
    assert f"reward {best.reward:.3g}, the best of 3" in shown.text
    assert "nan" not in shown.text + transcript(best)
    [segment] = [attrs for tag, attrs in shown.tags if attrs.get("class") == "segment"]
    assert "/ 0.00)" in segment["style"]


def test_a_rejected_draft_says_why(result: StarsResult) -> None:
    draft = result.segments[0].attempts[0].replace(reward=0.5, threshold=0.25, verdict="rejected")
    assert rejection_of(draft.replace(reward=0.125)) == "0.125 < 0.25"
    assert rejection_of(draft.replace(eligible=False)) == "0.5, not eligible"  # a veto
    assert rejection_of(draft.replace(threshold=float("nan"))) == "0.5"


def test_engines_and_schedules_are_short(engine: StarsEngine) -> None:
    assert repr(engine) == (
        "<StarsEngine model='stars:embedded-lm' reward='stars:embedded-reward', loaded>"
    )
    shown = Parsed(engine._repr_html_())
    for word in ("stars:embedded-lm", "stars:embedded-reward", "CalibratedSchedule", "loaded"):
        assert word in shown.text
    model, reward = type(engine.model).__name__, type(engine.reward).__name__
    with StarsEngine(model=engine.model, reward=engine.reward) as own:
        assert repr(own) == f"<StarsEngine model={model!r} reward={reward!r}, not loaded>"
        assert "AutoSchedule" in Parsed(own._repr_html_()).text
    schedule = engine.config.with_thresholds().schedule
    assert isinstance(schedule, CalibratedSchedule)
    assert len(repr(schedule)) < 200
    assert "budget" in Parsed(schedule._repr_html_()).text


def test_help_describes_fields() -> None:
    assert "max_tokens: maximum number of completion tokens; default: 128." in (
        SamplingParams.__doc__ or ""
    )


def test_single_settings_of_a_call(engine: StarsEngine) -> None:
    sampling = SamplingParams(max_tokens=6, seed=5)
    [expected] = engine.generate("The plot", sampling=sampling)
    [found] = engine.generate("The plot", max_tokens=6, seed=5)
    [also] = engine.generate("The plot", sampling=SamplingParams(seed=5), max_tokens=6)
    assert found.text == expected.text == also.text
    *_, last = engine.stream("The plot", max_tokens=6, seed=5)
    assert last.result.text == expected.text
    [plain] = engine.vanilla("The plot", max_tokens=3)
    assert plain.usage.num_kept_tokens == 3
    [short] = engine.generate("The plot", segment_len=2, max_tokens=4, seed=1)
    assert [len(segment.token_ids) for segment in short.segments] == [2, 2]


def test_a_preset_by_name_in_a_call(engine: StarsEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def new_group(self: StarsEngine, *arguments: object) -> None:
        asked.extend(arguments)
        raise InterruptedError

    monkeypatch.setattr(StarsEngine, "_submit", new_group)
    monkeypatch.setattr(StarsEngine, "_resolve_thresholds", lambda self, group: None)
    with pytest.raises(InterruptedError):
        engine.generate("The plot", align="safe", max_attempts=7)
    [request] = asked[0].prompts
    assert request.align.on_exhausted == "stop"
    assert request.align.max_attempts == 7


def test_an_unknown_setting_is_refused(engine: StarsEngine) -> None:
    with pytest.raises(ValueError, match="did you mean `max_tokens`"):
        engine.generate("The plot", max_token=3)
    with pytest.raises(ValueError, match="unknown field"):
        engine.generate("The plot", max_rows=3)
