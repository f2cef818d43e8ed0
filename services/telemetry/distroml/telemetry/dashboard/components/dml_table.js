import { Moment, State } from "dml_format";

// Rows of typed cells; on a narrow screen each row becomes a card with its labels.
export default {
  components: { Moment, State },
  props: { columns: Array, rows: Array, label: String, empty: String, hint: String },
  methods: {
    open(row, event) {
      if (!row.href || event.defaultPrevented || event.target.closest("a,button") || getSelection().toString()) return;
      if (event.metaKey || event.ctrlKey) window.open(row.href, "_blank");
      else window.location.assign(row.href);
    },
    percent(cell) {
      return cell.total > 0 ? Math.min(100, (100 * cell.step) / cell.total) : 0;
    },
  },
  template: `
    <div class="table-box">
      <table v-if="rows.length" :aria-label="label">
        <thead><tr>
          <th v-for="c in columns" :key="c.key" scope="col" :class="c.align">{{ c.label }}</th>
        </tr></thead>
        <tbody>
          <tr v-for="r in rows" :key="r.id" :data-id="r.id" :class="{ link: r.href }" @click="open(r, $event)">
            <td v-for="c in columns" :key="c.key" :class="[c.align, 'k-' + c.kind, { blank: !r[c.key] }]"
                :data-label="c.label">
              <template v-if="c.kind === 'name'">
                <a :href="r.href" class="name">{{ r[c.key].text }}</a><small class="mono">{{ r[c.key].sub }}</small>
              </template>
              <template v-else-if="c.kind === 'state'">
                <State v-bind="r[c.key]" /><small v-if="r[c.key].reason" :title="r[c.key].message">{{ r[c.key].reason }}</small>
              </template>
              <template v-else-if="c.kind === 'pair'">{{ r[c.key].text }}<small class="mono">{{ r[c.key].sub }}</small></template>
              <span v-else-if="c.kind === 'progress' && !r[c.key]">–</span>
              <div v-else-if="c.kind === 'progress'" class="progress" :class="'tone-' + r[c.key].tone">
                <span class="num">{{ r[c.key].text }}</span>
                <div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100"
                     :aria-valuenow="Math.round(percent(r[c.key]))" :aria-label="'progress of ' + r.id">
                  <i :style="{ width: percent(r[c.key]) + '%' }"></i>
                </div>
              </div>
              <div v-else-if="c.kind === 'meter'" class="progress">
                <span class="num">{{ r[c.key] ? r[c.key].text : '–' }}</span>
                <div class="bar thin" v-if="r[c.key]" aria-hidden="true">
                  <i :style="{ width: Math.min(100, 100 * r[c.key].ratio) + '%' }"></i>
                </div>
              </div>
              <Moment v-else-if="['ago', 'eta', 'elapsed'].includes(c.kind)" :kind="c.kind" :at="r[c.key] || 0" />
              <code v-else-if="c.kind === 'mono'" class="mono">{{ r[c.key] }}</code>
              <span v-else :class="{ num: c.align === 'right' }">{{ r[c.key] == null || r[c.key] === '' ? '–' : r[c.key] }}</span>
            </td>
          </tr>
        </tbody>
      </table>
      <div v-else class="empty"><b>{{ empty }}</b><code v-if="hint" class="mono">{{ hint }}</code></div>
    </div>`,
};
