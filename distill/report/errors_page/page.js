"use strict";
const list = document.getElementById("utterances");
const query = document.getElementById("query");
const order = document.getElementById("order");
const wrong = document.getElementById("wrong");
const found = document.getElementById("found");
const player = document.getElementById("player");
const playing = document.getElementById("playing");
const audio = document.getElementById("audio");
const items = [...list.children].map((element, place) => ({ element, place, data: element.dataset, text: null, marks: null }));

// Search: all terms must be there; A->B, -A and +B mean exactly that error, speaker:X exactly that speaker.

function index(item) {
  item.text = item.element.textContent.toLowerCase();
  item.marks = new Set([...item.element.querySelectorAll(".words > *")].map((mark) => mark.textContent.toLowerCase()));
}

function matches(item, term) {
  if (term.startsWith("speaker:")) return (item.data.speaker || "").toLowerCase() === term.slice(8);
  if (term.length > 1 && /^[+−]|→/.test(term)) return item.marks.has(term);
  return item.text.includes(term);
}

function terms() {
  const text = query.value.trim().toLowerCase();
  // What a button put there is one term, whatever blanks a name has.
  if (query.dataset.whole === query.value) return [text];
  return text.split(/\s+/).filter(Boolean).map((term) => term.replace("->", "→").replace(/^-/, "−"));
}

function filter() {
  const wanted = terms();
  let count = 0;
  for (const item of items) {
    if (item.text === null) index(item);
    const shown = (!wrong.checked || item.data.errors !== "0") && wanted.every((term) => matches(item, term));
    item.element.hidden = !shown;
    count += shown;
  }
  found.textContent = `${count} of ${items.length} utterances`;
}

function search(text) {
  query.value = text;
  query.dataset.whole = text;
  filter();
  query.scrollIntoView({ block: "nearest" });
}

// Order

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const orders = {
  errors: (a, b) => a.place - b.place,
  rate: (a, b) => b.data.rate - a.data.rate || a.place - b.place,
  name: (a, b) => compare(a.data.name, b.data.name),
  speaker: (a, b) => compare(a.data.speaker || "", b.data.speaker || "") || a.place - b.place,
};

function sort() {
  items.sort(orders[order.value]);
  list.append(...items.map((item) => item.element));
}

// Audio: one player for all utterances.

let pressed = null;

function show(button, on) {
  if (!button) return;
  button.setAttribute("aria-pressed", String(on));
}

function play(button) {
  if (button === pressed) {
    if (audio.paused) audio.play(); else audio.pause();
    return;
  }
  show(pressed, false);
  pressed = button;
  player.hidden = false;
  playing.textContent = button.closest("li").dataset.name;
  audio.src = button.dataset.sound;
  audio.play().catch(() => {});
}

audio.addEventListener("play", () => show(pressed, true));
audio.addEventListener("pause", () => show(pressed, false));
audio.addEventListener("ended", () => show(pressed, false));
audio.addEventListener("error", () => {
  show(pressed, false);
  const sound = pressed.dataset.sound;
  const why = sound.startsWith("data:") ? "this browser cannot play FLAC" : `no audio at ${decodeURI(sound)}`;
  playing.textContent = `${pressed.closest("li").dataset.name}: ${why}`;
});

// Keys

function step(by) {
  const shown = items.filter((item) => !item.element.hidden);
  const now = shown.findIndex((item) => item.element.contains(document.activeElement));
  const next = shown[now < 0 ? 0 : Math.min(Math.max(now + by, 0), shown.length - 1)];
  if (next) next.element.focus();
}

function playFocused() {
  const item = document.activeElement.closest("li");
  const button = item ? item.querySelector(".play") : pressed;
  if (button) play(button);
}

const keys = { "/": () => query.focus(), j: () => step(1), k: () => step(-1), p: playFocused };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    audio.pause();
    search("");
  } else if (!event.target.closest("input, select") && Object.hasOwn(keys, event.key)) {
    event.preventDefault();
    keys[event.key]();
  }
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.sound) play(button);
  else if (button.dataset.query) search(button.dataset.query);
});

query.addEventListener("input", filter);
wrong.addEventListener("change", filter);
order.addEventListener("change", sort);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
if (matchMedia("(min-width: 70rem)").matches) for (const box of document.querySelectorAll("details")) box.open = true;
