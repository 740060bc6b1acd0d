"use strict";
// Model text only ever becomes text nodes, so it can neither be markup nor run.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const showRejected = document.body.dataset.showRejected === "true";
let running = null;
let segments = [];

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function headers() {
  const found = { "Content-Type": "application/json" };
  if ($("key").value) found.Authorization = `Bearer ${$("key").value}`;
  return found;
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

async function loadModels() {
  let answer;
  try {
    answer = await fetch("v1/models", { headers: headers() });
  } catch {
    say("The server cannot be reached.", true);
    return;
  }
  if (answer.status === 401) {
    $("key-label").hidden = false;
    say("This server needs an API key.");
    return;
  }
  if (!answer.ok) {
    say((await answer.json()).error.message, true);
    return;
  }
  const chosen = $("model").value;
  const { data } = await answer.json();
  $("model").replaceChildren(...data.map((model) => new Option(model.id, model.id)));
  if (chosen) $("model").value = chosen;
  const loading = data.filter((model) => model.stars.state !== "ready");
  say(loading.map((model) => `${model.id} is ${model.stars.state}.`).join(" "));
  if (loading.some((model) => model.stars.state === "loading")) setTimeout(loadModels, 1000);
}

function request() {
  const body = {
    model: $("model").value,
    max_tokens: Number($("tokens").value),
    stream: true,
    stream_options: { include_usage: true },
    stars: { segments: true, rejected_text: showRejected },
  };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  const prompt = $("prompt").value;
  if ($("mode").value === "text") return ["v1/completions", { ...body, prompt }];
  return ["v1/chat/completions", { ...body, messages: [{ role: "user", content: prompt }] }];
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ") && block !== "data: [DONE]") {
        yield JSON.parse(block.slice(6));
      }
    }
  }
}

async function run() {
  const [path, body] = request();
  running = new AbortController();
  segments = [];
  $("answer").replaceChildren();
  if ("prompt" in body) $("answer").append(element("span", "prompt", body.prompt));
  $("segments").replaceChildren();
  $("result").hidden = false;
  $("run").disabled = true;
  $("stop").disabled = false;
  draw();
  say("Waiting for the first segment…");
  try {
    const options = { method: "POST", headers: headers(), signal: running.signal };
    const answer = await fetch(path, { ...options, body: JSON.stringify(body) });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer)) show(event);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error.message, true);
  } finally {
    running = null;
    $("run").disabled = false;
    $("stop").disabled = true;
  }
}

function show(event) {
  if (event.error) throw new Error(event.error.message);
  for (const choice of event.choices) {
    const delta = choice.delta ?? {};
    if (delta.refusal) $("answer").append(element("p", "refusal", delta.refusal));
    if (choice.stars?.segment) add(choice.stars.segment);
    if (choice.finish_reason) end(choice.stars);
  }
  if (event.usage) {
    const { completion_tokens: kept, completion_tokens_details: details } = event.usage;
    $("status").textContent += ` · ${kept} tokens kept of ${details.drafted_tokens} drafted`;
  }
}

function end(account) {
  const attempts = account.abandoned_attempts ?? [];
  if (attempts.length) {
    add({ text: "", reward: null, threshold: attempts[0].threshold, verdict: "nothing kept", attempts });
  }
  const reward = account.reward === null ? "none" : account.reward.toPrecision(3);
  say(`${account.finish_reason} · reward ${reward} · seed ${account.seed}`);
}

const marginOf = (segment) =>
  segment.reward === null || segment.threshold === null ? null : segment.reward - segment.threshold;

function add(segment) {
  segments.push(segment);
  const span = element("span", "segment", segment.text);
  span.title = facts(segment);
  $("answer").append(span);
  $("segments").append(item(segment));
  const scale = Math.max(...segments.map((each) => Math.abs(marginOf(each) ?? 0)), 1e-9);
  const spans = $("answer").querySelectorAll(".segment");
  segments.forEach((each, index) => colour(spans[index], each, scale));
  say(`${segments.length} segments accepted…`);
  draw();
}

function colour(span, segment, scale) {
  const margin = marginOf(segment);
  const strength = margin === null ? 0 : 0.08 + 0.42 * Math.min(1, Math.abs(margin) / scale);
  const name = segment.verdict === "forced" ? "red" : margin === null || margin >= 0 ? "green" : "amber";
  span.style.background = `rgb(var(--${name}) / ${strength.toFixed(2)})`;
}

function facts(segment) {
  if (segment.reward === null) return segment.verdict;
  const threshold = segment.threshold === null ? "none" : segment.threshold.toPrecision(3);
  return `${segment.verdict}, reward ${segment.reward.toPrecision(3)}, threshold ${threshold}`;
}

function item(segment) {
  const li = element("li");
  li.append(element("span", "text", segment.text), " ", element("span", "facts", facts(segment)));
  const rejected = segment.attempts.filter((attempt) => attempt.verdict === "rejected");
  if (rejected.length) {
    const details = element("details");
    const count = rejected.length === 1 ? "1 rejected draft" : `${rejected.length} rejected drafts`;
    details.append(element("summary", "", count));
    for (const attempt of rejected) {
      const row = element("div");
      row.append(element("del", "", attempt.text ?? "a draft"));
      row.append(element("span", "facts", ` reward ${attempt.reward?.toPrecision(3) ?? "none"}`));
      details.append(row);
    }
    li.append(details);
  }
  return li;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Rewards as dots, thresholds as a line of steps, one column for each segment.
function draw() {
  const chart = $("chart");
  chart.replaceChildren();
  const numbers = segments.flatMap((segment) => [
    segment.threshold, ...segment.attempts.map((attempt) => attempt.reward),
  ]).filter((value) => value !== null);
  if (!numbers.length) return;
  const width = Math.max(300, chart.clientWidth), height = 176, left = 44, pad = 12;
  const low = Math.min(...numbers), high = Math.max(...numbers), range = high - low || 1;
  const step = (width - left - pad) / segments.length;
  const x = (index) => left + step * (index + 0.5);
  const y = (value) => height - pad - ((value - low) / range) * (height - 2 * pad);
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const value of [low, high]) {
    chart.append(shape("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }));
    chart.append(shape("text", { x: 0, y: y(value) + 4 }, value.toPrecision(3)));
  }
  let path = "";
  segments.forEach((segment, index) => {
    if (segment.threshold !== null) {
      path += `${path ? "L" : "M"}${left + step * index} ${y(segment.threshold)}h${step}`;
    }
    for (const attempt of segment.attempts) {
      if (attempt.reward === null) continue;
      const place = { cx: x(index), cy: y(attempt.reward), r: attempt.verdict === "rejected" ? 3 : 5 };
      const kind = { accepted: "kept", forced: "forced" }[attempt.verdict] ?? "rejected";
      chart.append(shape("circle", { class: kind, ...place }));
    }
  });
  if (path) chart.append(shape("path", { class: "threshold", d: path }));
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
$("stop").addEventListener("click", () => running?.abort());
$("key").addEventListener("change", loadModels);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
window.addEventListener("resize", draw);
loadModels();
