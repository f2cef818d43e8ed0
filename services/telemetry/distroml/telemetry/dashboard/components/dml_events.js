import { Moment, stamp } from "dml_format";

const KEPT = 500;

// The job's events, newest first; the body of an event is laid out when it is opened.
export default {
  components: { Moment },
  props: { initial: Array },
  data: () => ({ events: [], all: false }),
  created() {
    this.events = (this.initial || []).map(Object.freeze);
  },
  computed: {
    shown() {
      return this.all ? this.events : this.events.filter((e) => !e.minor);
    },
  },
  methods: {
    stamp,
    prepend(events) {
      const known = new Set(this.events.map((e) => e.position));
      const fresh = events.filter((e) => !known.has(e.position)).map(Object.freeze);
      this.events = [...fresh, ...this.events].slice(0, KEPT);
    },
    replace(events) {
      this.events = events.map(Object.freeze);
    },
    body(e) {
      try {
        return JSON.stringify(JSON.parse(e.json), null, 2);
      } catch {
        return e.json || "This release cannot read the event.";
      }
    },
    opened(toggle, e) {
      const box = toggle.target;
      const pre = box.querySelector("pre");
      if (box.open && !pre.textContent) pre.textContent = this.body(e);
    },
  },
  template: `
    <div class="events-box"><button type="button" class="follow every" :aria-pressed="String(all)" @click="all = !all">progress</button>
    <div class="events" tabindex="0" role="log" aria-label="events, newest first">
      <details v-for="e in shown" :key="e.position" :data-position="e.position" @toggle="opened($event, e)">
        <summary><i :class="'tone-' + e.tone" aria-hidden="true"></i>
          <span class="type">{{ e.name }}</span><span class="what">{{ e.text }}</span>
          <Moment kind="ago" :at="e.at" /></summary>
        <p class="meta mono">{{ stamp(e.at) }} · {{ e.stream }} v{{ e.version }} · {{ e.position }}<template v-if="e.actor"> · by {{ e.actor }}</template></p>
        <pre class="mono"></pre>
      </details>
      <div v-if="!shown.length" class="empty"><b>No events yet</b></div>
    </div></div>`,
};
