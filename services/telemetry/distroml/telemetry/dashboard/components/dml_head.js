import { State } from "dml_format";

// Top of the job page: name, state, why, and how far it is.
export default {
  components: { State },
  props: { job: Object },
  computed: {
    percent() {
      return this.job.total > 0 ? Math.min(100, (100 * this.job.step) / this.job.total) : 0;
    },
  },
  template: `
    <section class="job-head">
      <div class="title-line">
        <h1>{{ job.name }}</h1><State :state="job.state" :tone="job.tone" />
        <code class="mono id">{{ job.id }}</code>
      </div>
      <p v-if="job.why" class="why" :class="'tone-' + job.tone"><b v-if="job.reason">{{ job.reason }}</b> {{ job.message }}</p>
      <div class="progress big" :class="'tone-' + job.tone">
        <div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" :aria-valuenow="Math.round(percent)"
             aria-label="training progress"><i :style="{ width: percent + '%' }"></i></div>
        <span class="num">{{ job.progress }}</span><span class="num pct">{{ job.total ? percent.toFixed(percent < 10 ? 1 : 0) + ' %' : '' }}</span>
      </div>
    </section>`,
};
