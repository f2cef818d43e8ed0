// The plan of the newest generation: predicted, measured, now; why it was chosen, and what else was possible.
export default {
  props: { plan: Object },
  template: `
    <div class="plan-text" v-if="plan && plan.known">
      <h2>Plan <small>generation {{ plan.generation }}</small>
        <span v-if="plan.verdict" class="pill" :class="'tone-' + plan.tone"><i aria-hidden="true"></i>{{ plan.verdict }}</span></h2>
      <p class="mono plan-line">{{ plan.text }}</p>
      <p v-if="plan.message" class="said" :class="'tone-' + plan.tone">{{ plan.message }}</p>
      <div class="plan-columns">
        <div>
          <table class="costs" aria-label="predicted and measured">
            <thead><tr><th scope="col"></th><th scope="col" class="right">Predicted</th><th scope="col" class="right">Measured</th>
              <th scope="col" class="right">Now</th></tr></thead>
            <tbody><tr v-for="c in plan.costs" :key="c.key" :data-key="c.key">
              <th scope="row">{{ c.label }}</th>
              <td class="right num">{{ c.predicted || '–' }}</td>
              <td class="right num">{{ c.measured || '–' }} <b v-if="c.off" class="off">{{ c.off }}</b><small v-if="c.sub">{{ c.sub }}</small></td>
              <td class="right num">{{ c.now || '–' }}</td>
            </tr></tbody>
          </table>
          <p v-if="plan.binding" class="binding"><b>What binds</b> {{ plan.binding }}</p>
          <p v-if="plan.sums" class="binding"><b>Sums of gradients</b> {{ plan.sums }}</p>
          <ul v-if="plan.reasons.length" class="reasons"><li v-for="r in plan.reasons" :key="r">{{ r }}</li></ul>
        </div>
        <div v-if="plan.best.length">
          <h3>What else was possible</h3>
          <ol class="best"><li v-for="b in plan.best" :key="b.plan">
            <span class="mono">{{ b.plan }}</span>
            <span class="num">{{ b.step }}<b v-if="b.off" class="off">{{ b.off }}</b><template v-if="b.memory"> · {{ b.memory }}</template></span>
            <small>{{ b.reason }}</small>
          </li></ol>
        </div>
      </div>
      <details v-if="plan.earlier.length" class="earlier"><summary>Earlier plans</summary>
        <p v-for="e in plan.earlier" :key="e.generation"><b>{{ e.generation }}</b> <span class="mono">{{ e.text }}</span> {{ e.said }}</p>
      </details>
    </div>`,
};
