// Whether this page still hears from the server, what is away, and the choice of light or dark.
const themes = ["auto", "light", "dark"];

export default {
  props: { notice: String, tone: String },
  data: () => ({ theme: "auto", live: false }),
  mounted() {
    const kept = localStorage.getItem("distroml-theme");
    this.apply(themes.includes(kept) ? kept : "auto");
    this.listen();
  },
  methods: {
    // The socket is opened after the components are mounted.
    listen() {
      if (!window.socket) return void setTimeout(this.listen, 50);
      this.live = window.socket.connected;
      window.socket.on("connect", () => (this.live = true));
      window.socket.on("disconnect", () => (this.live = false));
    },
    apply(theme) {
      this.theme = theme;
      setDark(theme === "auto" ? null : theme === "dark");
    },
    next() {
      const theme = themes[(themes.indexOf(this.theme) + 1) % themes.length];
      localStorage.setItem("distroml-theme", theme);
      this.apply(theme);
    },
  },
  template: `
    <div class="status">
      <span v-if="notice" class="notice" :class="'tone-' + tone" role="status">{{ notice }}</span>
      <span class="live" :class="live ? 'on' : 'off'" role="status"><i aria-hidden="true"></i>{{ live ? 'live' : 'connecting…' }}</span>
      <button type="button" class="theme" @click="next" :aria-label="'colours: ' + theme + '; change'">
        <svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="7"/><path class="half" d="M10 3a7 7 0 0 1 0 14z"/></svg>
        <span>{{ theme }}</span>
      </button>
    </div>`,
};
