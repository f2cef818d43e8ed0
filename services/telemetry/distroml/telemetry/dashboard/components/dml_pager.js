export default {
  props: { page: Number, size: Number, total: Number },
  computed: {
    pages() {
      return Math.max(1, Math.ceil(this.total / this.size));
    },
    text() {
      if (!this.total) return "";
      const first = (this.page - 1) * this.size + 1;
      return `${first.toLocaleString()}–${Math.min(this.total, first + this.size - 1).toLocaleString()} of ${this.total.toLocaleString()}`;
    },
  },
  template: `
    <nav class="pager" v-if="total" aria-label="pages of the job list">
      <span class="num">{{ text }}</span>
      <template v-if="pages > 1">
        <button type="button" :disabled="page <= 1" @click="$emit('page', page - 1)">← Newer</button>
        <button type="button" :disabled="page >= pages" @click="$emit('page', page + 1)">Older →</button>
      </template>
    </nav>`,
};
