import { Moment } from "dml_format";

// Labelled values; times tick by themselves.
export default {
  components: { Moment },
  props: { items: Array },
  template: `
    <dl class="facts">
      <div v-for="f in items" :key="f.key" :class="f.tone ? 'tone-' + f.tone : null" :data-key="f.key">
        <dt>{{ f.label }}</dt>
        <dd :title="f.title"><Moment v-if="f.kind" :kind="f.kind" :at="f.at || 0" :until="f.until || 0" />
          <span v-else class="num">{{ f.value }}</span><small v-if="f.sub">{{ f.sub }}</small></dd>
      </div>
    </dl>`,
};
