// Samples of the microphone at the device's rate to 16 kHz, 100 ms at a time; any rate, by windowed sinc.
const RATE = 16000, ZEROS = 12, ROLLOFF = 0.95, PIECE = 1600;

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    const cutoff = Math.min(1, RATE / sampleRate) * ROLLOFF;
    this.step = sampleRate / RATE;
    this.side = sampleRate === RATE ? 0 : Math.ceil(ZEROS / cutoff);
    this.cutoff = cutoff;
    this.held = new Float32Array(this.side);
    this.place = 0;  // of the next output, in `held`, from the first sample that its kernel takes
    this.kernels = new Map();
    this.out = new Float32Array(PIECE);
    this.filled = 0;
    this.port.onmessage = () => this.flush();
  }

  kernel(fraction) {
    const key = Math.round(fraction * 1024);
    if (!this.kernels.has(key)) {
      const taps = Float32Array.from({ length: 2 * this.side + 1 }, (_, i) => {
        const x = i - this.side - key / 1024, y = Math.PI * this.cutoff * x;
        const w = Math.cos(Math.PI / 2 * Math.max(-1, Math.min(1, x / (this.side + 1)))) ** 2;
        return w * (y === 0 ? 1 : Math.sin(y) / y);
      });
      const sum = taps.reduce((a, b) => a + b, 0);
      this.kernels.set(key, taps.map((tap) => tap / sum));
    }
    return this.kernels.get(key);
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels.length) return true;
    const held = new Float32Array(this.held.length + channels[0].length);
    held.set(this.held);
    for (let i = 0; i < channels[0].length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      held[this.held.length + i] = sum / channels.length;
    }
    const width = 2 * this.side + 1;
    let first = Math.floor(this.place);
    while (first + width <= held.length) {
      const taps = this.kernel(this.place - first);
      let sum = 0;
      for (let i = 0; i < width; i++) sum += taps[i] * held[first + i];
      this.push(sum);
      this.place += this.step;
      first = Math.floor(this.place);
    }
    const used = Math.min(first, held.length);
    this.held = held.slice(used);
    this.place -= used;
    return true;
  }

  push(sample) {
    this.out[this.filled++] = sample;
    if (this.filled === PIECE) this.flush();
  }

  flush() {
    this.port.postMessage(this.out.slice(0, this.filled));
    this.filled = 0;
  }
}

registerProcessor("microphone", Microphone);
