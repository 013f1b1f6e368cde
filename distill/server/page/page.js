// Sends audio as sherpa-onnx's clients do, and shows words, confidences and delays.
"use strict";

const RATE = 16000, MOST_WAITING = 1 << 18;
const $ = (id) => document.getElementById(id);
const page = { stream: null, token: new URLSearchParams(location.search).get("token") || "" };

function showStatus(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

/** One connection: send() samples, then end(); results go to the page. */
class Stream {
  constructor(source) {
    this.source = source;
    this.sent = 0;
    this.times = [];  // [samples sent so far, time]
    this.delays = [];
    this.wordDelays = [];
    this.shown = new Map();  // segment -> of each word its text, and when it was first shown
    this.items = new Map();
    const address = new URL("sherpa", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.search = "?confidence" + (page.token ? "&token=" + encodeURIComponent(page.token) : "");
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.opened = new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onclose = (event) => { reject(event); this.closed(event); };
    });
    this.opened.catch(() => {});
    this.socket.onmessage = (event) => { if (event.data !== "Done!") this.receive(JSON.parse(event.data)); };
  }

  send(samples) {
    if (this.socket.readyState !== WebSocket.OPEN || !samples.length) return;
    this.socket.send(samples);
    this.sent += samples.length;
    this.times.push([this.sent, performance.now()]);
    const peak = samples.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    $("level").value = Math.min(1, Math.sqrt(peak));
  }

  end() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send("Done");
  }

  /** Time at which a sample was sent. */
  when(sample) {
    let low = 0, high = this.times.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle][0] >= sample) high = middle; else low = middle + 1;
    }
    return this.times.length ? this.times[low][1] : performance.now();
  }

  receive(message) {
    const now = performance.now();
    if (!message.is_final) this.delays.push(now - this.when(message.samples));
    this.count(message, now);
    this.show(message);
    if (message.is_final && message.text) $("spoken").textContent = message.text;
    figure("after-chunk", this.delays);
    figure("after-word", this.source === "file" && !$("paced").checked ? [] : this.wordDelays);
    $("processed").textContent = (message.samples / RATE).toFixed(1) + " s";
  }

  /** Delays of stable words, from their end to when they were first shown. */
  count({ segment, result, settled }, now) {
    if (!this.shown.has(segment)) this.shown.set(segment, []);
    const shown = this.shown.get(segment);
    result.forEach((word, i) => {
      if (!shown[i] || shown[i].text !== word.word) shown[i] = { text: word.word, time: now, counted: false };
      if (i >= settled || shown[i].counted) return;
      this.wordDelays.push(Math.max(0, shown[i].time - this.when(word.end * RATE)));
      shown[i].counted = true;
    });
  }

  show({ segment, result: words, settled }) {
    if (!words.length && !this.items.has(segment)) return;
    if (!this.items.has(segment)) this.items.set(segment, $("transcript").appendChild(document.createElement("li")));
    const item = this.items.get(segment);
    item.replaceChildren(...words.flatMap((word, i) => {
      const span = document.createElement("span");
      span.className = "word" + (word.conf < 0.6 ? " low" : word.conf < 0.85 ? " middle" : "") + (i < settled ? "" : " unsure");
      span.textContent = word.word;
      span.title = `${Math.round(100 * word.conf)} %, ${word.start.toFixed(2)} to ${word.end.toFixed(2)} s`;
      return i ? [" ", span] : [span];
    }));
    $("transcript").scrollTop = $("transcript").scrollHeight;
  }

  closed(event) {
    $("level").value = 0;
    if (page.stream === this) page.stream = null;
    if (event.code === 1000) return showStatus("Done.");
    if (event.code === 1006 && !this.sent) {
      $("access").hidden = false;
      return showStatus("No connection: is the server running, and does it require a token?", true);
    }
    showStatus(event.code === 1006 ? "The connection is lost." : `The server closed the stream: ${event.reason || "code " + event.code}`, true);
  }
}

function figure(id, values) {
  if (!values.length) return;
  const sorted = [...values].sort((a, b) => a - b);
  $(id).textContent = `${Math.round(sorted[sorted.length >> 1])} ms (${Math.round(values[values.length - 1])})`;
}

async function connected(source) {
  stop();
  const stream = page.stream = new Stream(source);
  await stream.opened;
  return stream;
}

async function listen() {
  if (page.stream && page.stream.source === "microphone") return stop();
  let media, context;
  try {
    if (!navigator.mediaDevices) throw new Error("a browser gives the microphone to https pages and localhost only");
    media = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false } });
    media.getAudioTracks()[0].onended = stop;
    context = new AudioContext();
    await context.audioWorklet.addModule("microphone.js");
    const stream = await connected("microphone");
    const node = new AudioWorkletNode(context, "microphone");
    node.port.onmessage = (event) => stream.send(event.data);
    context.createMediaStreamSource(media).connect(node);
    stream.release = async () => {
      node.port.postMessage("flush");
      await new Promise((resolve) => setTimeout(resolve, 50));
      media.getTracks().forEach((track) => track.stop());
      await context.close();
    };
    stream.socket.addEventListener("close", () => pressed(false));
    pressed(true);
    showStatus("Listening. Speak.");
  } catch (error) {
    if (media) media.getTracks().forEach((track) => track.stop());
    if (context) context.close();
    if (error instanceof Event) return;  // the connection has shown its own message
    showStatus("No microphone: " + error.message, true);
  }
}

function pressed(on) {
  $("microphone").setAttribute("aria-pressed", on);
  $("microphone-label").textContent = on ? "Stop" : "Microphone";
}

async function stop() {
  const stream = page.stream;
  if (!stream) return;
  page.stream = null;
  pressed(false);
  if (stream.release) await stream.release();
  stream.end();
}

async function read(file) {
  let samples;
  try {
    showStatus(`Reading ${file.name} …`);
    const decoder = new OfflineAudioContext(1, 1, RATE);
    const audio = await decoder.decodeAudioData(await file.arrayBuffer());
    samples = mixed(audio);
  } catch (error) {
    return showStatus(`${file.name} cannot be read as audio: ${error.message}`, true);
  }
  let stream;
  try { stream = await connected("file"); } catch { return; }
  showStatus(`Recognising ${file.name}, ${(samples.length / RATE).toFixed(1)} s …`);
  const begun = performance.now();
  for (let at = 0; at < samples.length && page.stream === stream; at += 1600) {
    stream.send(samples.slice(at, at + 1600));
    const due = $("paced").checked ? begun + (at + 1600) / 16 - performance.now() : 0;
    if (due > 0) await new Promise((resolve) => setTimeout(resolve, due));
    while (stream.socket.bufferedAmount > MOST_WAITING) await new Promise((resolve) => setTimeout(resolve, 20));
  }
  if (page.stream === stream) stream.end();
}

function mixed(audio) {
  const samples = new Float32Array(audio.length);
  for (let c = 0; c < audio.numberOfChannels; c++) {
    const channel = audio.getChannelData(c);
    for (let i = 0; i < samples.length; i++) samples[i] += channel[i] / audio.numberOfChannels;
  }
  return samples;
}

function clearAll() {
  $("transcript").replaceChildren();
  $("spoken").textContent = "";
  for (const id of ["after-chunk", "after-word", "processed"]) $(id).textContent = "–";
}

$("microphone").onclick = listen;
$("file").onchange = (event) => { if (event.target.files[0]) read(event.target.files[0]); event.target.value = ""; };
$("clear").onclick = clearAll;
$("copy").onclick = async () => {
  const text = [...$("transcript").children].map((item) => item.textContent).join("\n");
  try { await navigator.clipboard.writeText(text); showStatus("Copied."); } catch { showStatus("The browser does not let this page copy.", true); }
};
$("access").onsubmit = (event) => { event.preventDefault(); page.token = $("token").value; $("access").hidden = true; showStatus("Ready."); };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "password") return;
  const act = { m: listen, o: () => $("file").click(), c: clearAll, Escape: stop }[event.key];
  if (act) { event.preventDefault(); act(); }
});
