"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const FADE = 6;         // pictures until a highlight is gone
const PER_SECOND = 6;   // pictures at speed 1
const TOKENS_SHOWN = 10; // of one candidate, at a step where many positions jump
const CHART = { narrowest: 240, height: 170, left: 50, right: 10, top: 10, bottom: 24 }; // in pixels: letters keep their size
const ARM_NAMES = { shaped: "Shaped", blind: "Blind" };
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "line", "polyline", "circle", "text"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children); // strings become text nodes: no text of the dataset is ever read as HTML
  return element;
}

function keepTallest(element) {
  element.style.minHeight = `${element.offsetHeight}px`; // never less than the minimum so far
}

const visible = (piece) => piece.replace(/\n/g, "\u21b5").replace(/ /g, "\u00b7") || "\u2205";
const nats = (energy) => energy.toFixed(4);

/* One trajectory of one arm. A picture is the state after a frame; picture -1 is the source. */
class Panel {
  constructor(log) {
    this.log = log;
    this.spans = log.source.map(() => make("span"));
    this.text = make("div", { class: "text", role: "group", "aria-label": `Text, ${log.arm} arm` }, ...this.spans);
    this.given = new Set(log.given);
    this.status = make("p");
    this.candidates = make("div", { class: "tall" });
    this.which = make("h3");
    this.curves = make("div");
    const header = make("header", {}, make("h2", {}, ARM_NAMES[log.arm] || log.arm), this.status);
    this.root = make("section", { class: "panel card", "aria-label": `${log.arm} arm of trajectory ${log.id}` }, header);
    if (log.given.length) this.root.append(make("p", { class: "note" }, `${this.prompt()} (given, underlined below)`));
    this.root.append(this.text);
    this.scored = log.frames.filter((frame) => frame.energies);
    this.chosen = this.scored.length > 0 || log.frames.some((frame) => frame.choices);
    if (this.chosen) {
      this.root.append(this.which, this.candidates);
      if (this.scored.length) this.root.append(make("h3", {}, "Energy along t"), this.curves);
    } else {
      const note = log.arm === "blind" ? "The blind arm has one draw per jump: nothing was chosen." : "No step of this trajectory was scored.";
      this.root.append(make("p", { class: "note", style: "margin-top:16px" }, note));
    }
  }

  /* What was given, in words, so that nobody need see a line under it: each run of tokens, gaps as an ellipsis. */
  prompt() {
    const runs = [];
    for (const position of this.log.given) {
      if (!this.given.has(position - 1)) runs.push("");
      runs[runs.length - 1] += this.log.source[position];
    }
    return runs.map((run) => `\u201c${run.trim()}\u201d`).join(" \u2026 ");
  }

  /* The index of the last frame at or before a step. */
  at(step) {
    let index = -1;
    while (index + 1 < this.log.frames.length && this.log.frames[index + 1].step <= step) index += 1;
    return index;
  }

  show(step) {
    const index = this.at(step);
    const pieces = this.log.source.slice();
    const written = new Array(pieces.length).fill(-Infinity); // the picture that last wrote each position
    for (let i = 0; i <= index; i += 1) {
      for (const [position, piece] of this.log.frames[i].set) pieces[position] = piece;
      for (const position of this.log.frames[i].changed) written[position] = i;
    }
    this.spans.forEach((span, position) => this.paint(span, pieces[position], index - written[position], this.given.has(position)));
    const frame = index >= 0 && this.log.frames[index].step === step ? this.log.frames[index] : null;
    this.say(pieces, frame, index === this.log.frames.length - 1);
    if (this.chosen) {
      const last = index >= 0 ? this.log.frames[index] : null; // at a step without a jump: those of the last jump
      this.which.textContent = last ? `Candidates at step ${last.step + 1}` : "Candidates";
      this.candidates.replaceChildren(...this.choices(last));
      keepTallest(this.candidates);
      if (this.scored.length) this.moveCursor((step + 1) / data.steps);
    }
    return frame ? frame.changed.length : 0;
  }

  paint(span, piece, age, given) {
    const mask = piece === null;
    const text = mask ? "" : piece;
    if (span.textContent !== text) span.textContent = text;
    span.className = mask ? "mask" : given ? "given" : age === 0 ? "now" : "";
    if (mask) span.setAttribute("aria-hidden", "true"); else span.removeAttribute("aria-hidden");
    span.style.setProperty("--fresh", mask || age >= FADE ? 0 : (0.72 * (1 - age / FADE)).toFixed(3));
  }

  say(pieces, frame, done) {
    const parts = [];
    const masks = pieces.filter((piece) => piece === null).length;
    if (frame) parts.push(`${frame.changed.length} written`);
    if (data.masks && masks) parts.push(`${masks} masked`);
    if (done && this.log.final !== null) parts.push(`final energy ${nats(this.log.final)} nats/token`);
    this.status.textContent = parts.join(" \u00b7 ");
  }

  choices(frame) {
    const note = (text) => [make("p", { class: "note" }, text)];
    if (!frame) return note("Nothing is written yet.");
    if (frame.choices) return this.tokens(frame);
    if (frame.choice === null) return note("This step was not shaped: one draw, kept.");
    if (!frame.energies) return note("All candidates drew the same tokens: nothing to choose.");
    const low = Math.min(...frame.energies), high = Math.max(...frame.energies);
    const base = low - 0.12 * (high - low || 1); // bars start a little below the lowest, so that it shows
    const head = make("tr", { role: "row" }, make("th", { scope: "col", role: "columnheader" }, "candidate"),
      make("th", { scope: "col", role: "columnheader", colspan: "2" }, "energy"),
      make("th", { scope: "col", role: "columnheader" }, "would write"));
    const rows = frame.energies.map((energy, k) => this.choice(frame, k, (energy - base) / (high - base || 1)));
    const caption = make("caption", { class: "hidden" }, `Energies of ${rows.length} candidates; candidate ${frame.choice} was kept`);
    return [make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Candidates" },
      make("table", { role: "table" }, caption, make("thead", { role: "rowgroup" }, head), make("tbody", { role: "rowgroup" }, ...rows))),
    make("p", { class: "legend" }, `nats per token, lower is better; bars start at ${nats(base)}`)];
  }

  /* A step whose positions chose one by one: a row for each, its candidates side by side. */
  tokens(frame) {
    const rows = frame.choices.slice(0, TOKENS_SHOWN).map((each, r) => make("tr", { role: "row" },
      make("th", { scope: "row", role: "rowheader" }, String(frame.changed[r])),
      make("td", { class: "words", role: "cell" }, ...this.tokenCandidates(frame.candidates[r], each))));
    const head = make("tr", { role: "row" }, make("th", { scope: "col", role: "columnheader" }, "position"),
      make("th", { scope: "col", role: "columnheader" }, "candidates, and their energies"));
    const caption = make("caption", { class: "hidden" }, `What ${frame.choices.length} positions chose by themselves`);
    const more = frame.choices.length - TOKENS_SHOWN;
    return [make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Candidates" },
      make("table", { role: "table" }, caption, make("thead", { role: "rowgroup" }, head), make("tbody", { role: "rowgroup" }, ...rows))),
    make("p", { class: "legend" }, `nats, lower is better${more > 0 ? `; ${more} positions more` : ""}`)];
  }

  tokenCandidates(words, each) {
    if (!each.energies) return [make("code", {}, visible(words[0])), " all candidates agreed"];
    return words.flatMap((word, k) => {
      const label = `${k === each.choice ? "\u2713" : ""}${visible(word)} ${each.energies[k].toFixed(2)}`;
      return [k === each.choice ? make("b", {}, make("code", {}, label)) : make("code", {}, label), " "];
    });
  }

  choice(frame, k, share) {
    const kept = k === frame.choice;
    const label = `${kept ? "\u2713 " : ""}${k}${k === 0 ? " (blind draw)" : ""}${kept ? " kept" : ""}`;
    const bar = make("div", { "aria-hidden": "true" });
    bar.style.width = `${(100 * share).toFixed(1)}%`;
    const words = frame.candidates.slice(0, TOKENS_SHOWN).map((row) => make("code", {}, visible(row[k])));
    const more = frame.candidates.length - TOKENS_SHOWN;
    // The roles are those of a table anyway, said because a phone lays the rows out as blocks.
    return make("tr", { role: "row", class: kept ? "chosen" : "" }, make("th", { scope: "row", role: "rowheader" }, label),
      make("td", { class: "bar", role: "cell" }, bar), make("td", { class: "number", role: "cell" }, nats(frame.energies[k])),
      make("td", { class: "words", role: "cell" }, ...words, more > 0 ? `+${more}` : ""));
  }

  chart() {
    const { height, left, right, top, bottom } = CHART;
    const width = Math.max(CHART.narrowest, this.curves.clientWidth);
    const kept = this.scored.map((frame) => [frame.t, frame.energies[frame.choice]]);
    const draw = this.scored.map((frame) => [frame.t, frame.energies[0]]);
    const all = [...kept, ...draw].map((point) => point[1]);
    if (this.log.final !== null) all.push(this.log.final);
    const low = Math.min(...all), span = Math.max(...all) - low || 1;
    this.x = (t) => left + t * (width - left - right);
    const y = (energy) => top + (1 - (energy - low) / span) * (height - top - bottom);
    const points = (pairs) => pairs.map(([t, energy]) => `${this.x(t).toFixed(1)},${y(energy).toFixed(1)}`).join(" ");
    const label = `Energy along t, from ${nats(kept[0][1])} to ${nats(kept[kept.length - 1][1])} nats per token`;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label },
      make("polyline", { class: "axis", points: `${left},${top} ${left},${height - bottom} ${width - right},${height - bottom}` }),
      make("text", { x: left - 6, y: top + 6, "text-anchor": "end" }, (low + span).toFixed(2)),
      make("text", { x: left - 6, y: height - bottom, "text-anchor": "end" }, low.toFixed(2)),
      make("text", { x: left, y: height - 6 }, "t = 0"),
      make("text", { x: width - right, y: height - 6, "text-anchor": "end" }, "t = 1"),
      make("polyline", { class: "line draw", points: points(draw) }), make("polyline", { class: "line kept", points: points(kept) }));
    if (this.log.final !== null) svg.append(make("circle", { class: "dot", cx: this.x(1), cy: y(this.log.final), r: 4 }));
    this.cursor = make("line", { class: "cursor", y1: top, y2: height - bottom });
    svg.append(this.cursor);
    const legend = make("p", { class: "legend" }, make("span", {}, make("i"), "kept"),
      make("span", {}, make("i", { class: "draw" }), "candidate 0, the blind draw"));
    if (this.log.final !== null) legend.append(make("span", {}, "\u25cf the final text"));
    this.curves.replaceChildren(svg, legend);
  }

  moveCursor(t) {
    this.cursor.setAttribute("x1", this.x(t));
    this.cursor.setAttribute("x2", this.x(t));
  }

  /* Draw for the width there is; look at some pictures and keep the height of the tallest, so that nothing moves later. */
  settle() {
    if (this.scored.length) this.chart();
    this.text.style.minHeight = this.candidates.style.minHeight = "";
    const last = this.log.frames.length ? this.log.frames[this.log.frames.length - 1].step : -1;
    for (const step of [-1, Math.floor(last / 2), last, ...this.scored.slice(0, 1).map((frame) => frame.step)]) {
      this.show(step);
      keepTallest(this.text);
    }
  }
}

/* The player: which logs are shown, the pictures (steps at which any of them jumps), and where it stands. */
const player = { panels: [], pictures: [-1], index: 0, timer: null, arm: null };

function render() {
  const step = player.pictures[player.index];
  const written = player.panels.map((panel) => panel.show(step));
  const t = step + 1 === data.steps ? "1" : ((step + 1) / data.steps).toFixed(3);
  byId("slider").value = player.index;
  byId("slider").setAttribute("aria-valuetext", step < 0 ? "source, t = 0" : `step ${step + 1} of ${data.steps}, t = ${t}`);
  byId("clock").replaceChildren("step ", make("b", {}, String(step + 1)), ` of ${data.steps}  \u00b7  t = `, make("b", {}, t));
  if (player.timer === null) byId("live").textContent = `Step ${step + 1} of ${data.steps}, ${written[0] || 0} tokens written`;
}

function go(index) {
  player.index = Math.max(0, Math.min(player.pictures.length - 1, index));
  render();
}

function pause() {
  clearTimeout(player.timer);
  player.timer = null;
  byId("play").textContent = "Play";
}

function tick() {
  player.timer = setTimeout(() => {
    go(player.index + 1);
    if (player.index < player.pictures.length - 1) tick(); else pause();
  }, 1000 / (PER_SECOND * Number(byId("speed").value)));
}

function toggle() {
  if (player.timer !== null) { pause(); return; }
  if (player.index === player.pictures.length - 1) go(0);
  byId("play").textContent = "Pause";
  tick();
}

function armsOf(id) {
  return data.logs.filter((log) => log.id === id).map((log) => log.arm);
}

function chooseArm(arm) {
  const step = player.pictures[player.index];
  const id = Number(byId("trajectory").value);
  player.arm = arm;
  player.panels = data.logs.filter((log) => log.id === id && (arm === "both" || log.arm === arm)).map((log) => new Panel(log));
  byId("panels").replaceChildren(...player.panels.map((panel) => panel.root));
  byId("panels").classList.toggle("two", player.panels.length > 1);
  const steps = new Set(player.panels.flatMap((panel) => panel.log.frames.map((frame) => frame.step)));
  player.pictures = [...new Set([-1, ...steps, data.steps - 1])].sort((a, b) => a - b); // the last is t = 1, jump or none
  byId("slider").max = player.pictures.length - 1;
  player.panels.forEach((panel) => panel.settle());
  go(player.pictures.filter((other) => other <= step).length - 1); // stay at the same time
}

function chooseTrajectory() {
  const arms = armsOf(Number(byId("trajectory").value));
  const options = arms.length > 1 ? [...arms, "both"] : arms;
  const arm = options.includes(player.arm) ? player.arm : options[options.length - 1];
  const radios = options.map((name) => {
    const input = make("input", { type: "radio", name: "arm", value: name });
    input.checked = name === arm;
    input.addEventListener("change", () => chooseArm(name));
    return make("label", {}, input, make("span", {}, ARM_NAMES[name] || "Side by side"));
  });
  byId("arms").replaceChildren(byId("arms").querySelector("legend"), ...radios);
  chooseArm(arm);
}

function onKey(event) {
  const onControl = ["SELECT", "BUTTON"].includes(event.target.tagName) || event.target.type === "radio";
  if (event.ctrlKey || event.metaKey || event.altKey || (onControl && event.target.tagName !== "BUTTON")) return;
  if (onControl && event.key === " ") return; // the button's own key
  const moves = { ArrowLeft: player.index - 1, ArrowRight: player.index + 1, Home: 0, End: player.pictures.length - 1 };
  if (event.key === " ") toggle();
  else if (event.key in moves) { pause(); go(moves[event.key]); }
  else return;
  event.preventDefault();
}

byId("facts").append(...data.facts.map((fact) => make("span", {}, fact)));
for (const id of new Set(data.logs.map((log) => log.id))) byId("trajectory").append(make("option", { value: id }, String(id)));
byId("trajectory").addEventListener("change", () => { pause(); chooseTrajectory(); });
byId("play").addEventListener("click", toggle);
byId("back").addEventListener("click", () => { pause(); go(player.index - 1); });
byId("next").addEventListener("click", () => { pause(); go(player.index + 1); });
byId("slider").addEventListener("input", (event) => { pause(); go(Number(event.target.value)); });
document.addEventListener("keydown", onKey);
window.addEventListener("resize", () => { player.panels.forEach((panel) => panel.settle()); render(); });
chooseTrajectory();
go(player.pictures.length - 1); // a page opens on what was written; Play starts over
