// Shared by the components: the server's clock, numbers and durations in words, one ticking second for all.

export function now() {
  return Date.now() + (window.dmlSkew || 0);
}

export function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function short(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour12: false });
}

export function stamp(ms) {
  return new Date(ms).toLocaleString([], { hour12: false });
}

export function compact(n) {
  if (n === null || n === undefined || !isFinite(n)) return "–";
  const a = Math.abs(n);
  if (a >= 1e9) return (n / 1e9).toFixed(2) + " G";
  if (a >= 1e6) return (n / 1e6).toFixed(2) + " M";
  if (a >= 1e4) return (n / 1e3).toFixed(1) + " k";
  if (a >= 100) return n.toFixed(0);
  // As a number again, so that 0.500 on an axis is 0.5.
  return String(Number(n.toPrecision(a >= 1 ? 4 : 3)));
}

const ticking = new Set();
setInterval(() => {
  if (document.visibilityState === "visible") ticking.forEach((f) => f());
}, 1000);

// Mixin: `tick` changes every second, so that ages drawn from it stay true without a message from the server.
export const Ticking = {
  data: () => ({ tick: 0 }),
  mounted() {
    this._beat = () => this.tick++;
    ticking.add(this._beat);
  },
  beforeUnmount() {
    ticking.delete(this._beat);
  },
};

export const Moment = {
  mixins: [Ticking],
  props: { kind: String, at: Number, until: Number },
  computed: {
    text() {
      this.tick;
      if (!this.at) return "–";
      if (this.kind === "elapsed") return duration((this.until || now()) - this.at);
      if (this.kind === "eta") return this.at > now() ? "in " + short(this.at - now()) : "now";
      return short(now() - this.at) + " ago";
    },
    title() {
      return this.at ? stamp(this.at) : "";
    },
  },
  template: `<time :title="title" class="num">{{ text }}</time>`,
};

export const State = {
  props: { state: String, tone: String },
  template: `<span class="pill" :class="'tone-' + tone"><i aria-hidden="true"></i>{{ state }}</span>`,
};
