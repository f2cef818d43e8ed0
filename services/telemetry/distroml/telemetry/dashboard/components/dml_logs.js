import { clock } from "dml_format";
import { escaped, lineRow, mark } from "dml_lines";

const KEPT = 2000;

// The newest lines of the workers, as they come. Rows stand outside Vue.
export default {
  props: { ranks: Array, note: String },
  data: () => ({ rank: "", text: "", follow: true, unseen: 0, count: 0, waiting: false }),
  created() {
    this.pending = null;
  },
  mounted() {
    if (this.pending) this.replace(this.pending);
  },
  methods: {
    row(line) {
      const [el, tx] = lineRow(line, clock);
      mark(tx, line.text, this.text ? new RegExp(escaped(this.text), "gi") : null);
      return el;
    },
    replace(lines) {
      const view = this.$refs.view;
      if (!view) {
        this.pending = lines;
        return;
      }
      view.replaceChildren(...lines.map(this.row));
      this.count = lines.length;
      this.unseen = 0;
      this.waiting = false;
      if (this.follow) this.bottom();
    },
    append(lines) {
      const view = this.$refs.view;
      view.append(...lines.map(this.row));
      const extra = view.childElementCount - KEPT;
      if (extra > 0 && this.follow) for (let i = 0; i < extra; i++) view.firstElementChild.remove();
      this.count = view.childElementCount;
      if (this.follow) this.bottom();
      else this.unseen += lines.length;
    },
    bottom() {
      const view = this.$refs.view;
      this.unseen = 0;
      this.follow = true;
      requestAnimationFrame(() => (view.scrollTop = view.scrollHeight));
    },
    scrolled() {
      const view = this.$refs.view;
      const end = view.scrollHeight - view.scrollTop - view.clientHeight < 24;
      if (end) this.unseen = 0;
      this.follow = end;
    },
    changed() {
      clearTimeout(this._wait);
      this._wait = setTimeout(() => {
        this.waiting = true;
        this.follow = true;
        this.$emit("filter", { rank: this.rank === "" ? -1 : Number(this.rank), text: this.text });
      }, 200);
    },
  },
  template: `
    <div class="logs">
      <div class="tools">
        <label><span class="sr">rank</span><select v-model="rank" @change="changed" aria-label="rank">
          <option value="">all ranks</option><option v-for="r in ranks" :key="r" :value="String(r)">rank {{ r }}</option>
        </select></label>
        <label class="search"><svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="8.5" cy="8.5" r="5.5"/><path d="M13 13l4.5 4.5"/></svg>
          <input type="search" v-model="text" @input="changed" placeholder="Search lines" aria-label="search lines" spellcheck="false"/></label>
        <button type="button" class="follow" :aria-pressed="String(follow)" @click="follow ? (follow = false) : bottom()">follow</button>
        <span v-if="note" class="note">{{ note }}</span>
      </div>
      <div class="lines mono" ref="view" tabindex="0" role="log" aria-label="lines of the workers" @scroll.passive="scrolled"></div>
      <div v-if="!count" class="empty over"><b>{{ waiting ? 'Searching…' : text || rank !== '' ? 'No line matches' : 'No lines yet' }}</b></div>
      <button v-if="unseen" type="button" class="unseen" @click="bottom">{{ unseen }} new ↓</button>
    </div>`,
};
