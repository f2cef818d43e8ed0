import { stamp } from "dml_format";
import { escaped, lineRow, mark } from "dml_lines";

// Every kept line of a job by words, level, rank and time; asked for by the key Enter or a changed choice.
export default {
  props: { ranks: Array, levels: Array },
  data: () => ({ text: "", rank: "", level: "", within: "0", more: false, state: "ask", said: "", count: 0 }),
  methods: {
    ask(older) {
      this.state = "searching";
      const rank = this.rank === "" ? -1 : Number(this.rank);
      this.$emit("ask", { text: this.text, rank, level: this.level, within_s: Number(this.within), older });
    },
    show(lines, more, older) {
      const words = this.text.match(/[\p{L}\p{N}_]+/gu) || [];
      const wanted = words.length ? new RegExp(words.map(escaped).join("|"), "giu") : null;
      const rows = lines.map((line) => {
        const [el, tx] = lineRow(line, stamp);
        mark(tx, line.text, wanted);
        return el;
      });
      const view = this.$refs.view;
      if (older) view.append(...rows);
      else view.replaceChildren(...rows);
      this.count = view.childElementCount;
      this.more = more;
      this.state = "found";
      if (!older) view.scrollTop = 0;
    },
    refuse(why) {
      this.said = why;
      this.state = "refused";
    },
  },
  template: `
    <form class="logs" @submit.prevent="ask(false)">
      <div class="tools">
        <label class="search"><svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="8.5" cy="8.5" r="5.5"/><path d="M13 13l4.5 4.5"/></svg>
          <input type="search" v-model="text" placeholder='Words, or "words in order"' aria-label="words" spellcheck="false" maxlength="256"/></label>
        <label><span class="sr">rank</span><select v-model="rank" @change="ask(false)" aria-label="rank searched">
          <option value="">all ranks</option><option v-for="r in ranks" :key="r" :value="String(r)">rank {{ r }}</option>
        </select></label>
        <label><span class="sr">level</span><select v-model="level" @change="ask(false)" aria-label="level">
          <option value="">any level</option><option v-for="l in levels" :key="l" :value="l">{{ l }} and graver</option>
        </select></label>
        <label><span class="sr">time</span><select v-model="within" @change="ask(false)" aria-label="time">
          <option value="0">any time</option><option value="900">last 15 min</option>
          <option value="3600">last hour</option><option value="86400">last day</option>
        </select></label>
        <button type="submit" class="follow">search</button>
      </div>
      <div class="found mono" ref="view" tabindex="0" role="log" aria-label="lines found, newest first"></div>
      <div v-if="state === 'refused'" class="empty over" role="alert"><b>{{ said }}</b></div>
      <div v-else-if="!count" class="empty over"><b>{{ state === 'searching' ? 'Searching…' : state === 'ask' ? 'Every kept line, newest first' : 'No line matches' }}</b></div>
      <button v-if="more && state === 'found'" type="button" class="unseen" @click="ask(true)">older ↓</button>
    </form>`,
};
